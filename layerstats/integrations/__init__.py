"""Schedules inside other trainers: Hugging Face's Trainer and what is built on it, and axolotl."""

from __future__ import annotations
