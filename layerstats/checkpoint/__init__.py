"""Where bytes become layers: files and tensor names are known here and nowhere else.

`read_index` reads headers, `find_layout` says what each tensor is, `open_checkpoint` and
`LayerReader` read weights. This door stays empty of imports so that `inspect`, which needs headers
only, does not import torch.
"""
