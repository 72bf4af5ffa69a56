"""LiveBytes against sequences counted by hand, against torch's profiler, and on fake tensors."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from layerstats.errors import UsageError
from layerstats.train.live_bytes import PARTS, LiveBytes

KIB = 1024


def kib(count: int, **options: object) -> torch.Tensor:
    """A tensor of `count` KiB."""
    return torch.zeros(count * KIB // 4, **options)


@pytest.fixture(params=["real", "fake"])
def tensors(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "real":
        yield
        return
    with FakeTensorMode():
        yield


@pytest.mark.usefixtures("tensors")
class TestCountedByHand:
    def test_what_is_freed_is_gone(self) -> None:
        with LiveBytes() as live:
            a = kib(3)
            b = kib(5)
            assert live.current == 8 * KIB
            del a
            assert live.current == 5 * KIB
            c = kib(1)
            assert (live.current, live.peak) == (6 * KIB, 8 * KIB)
            del b, c
        assert (live.current, live.peak) == (0, 8 * KIB)

    def test_views_and_in_place_results_add_nothing(self) -> None:
        with LiveBytes() as live:
            a = kib(4)
            views = [a[10:], a.view(2, -1), a.view(2, -1).t(), a.detach(), a.add_(1), a.mul_(2)]
            assert live.current == live.peak == 4 * KIB
            del a
            assert live.current == 4 * KIB
            views.clear()
            assert live.current == 0

    def test_a_view_of_nothing_else_keeps_the_whole_storage(self) -> None:
        with LiveBytes() as live:
            corner = kib(4)[:1]
            assert live.current == 4 * KIB
            del corner
            assert live.current == 0

    def test_copies_count(self) -> None:
        with LiveBytes() as live:
            a = kib(4)
            b = a.to(torch.bfloat16)
            c = a.view(32, -1).t().contiguous()
            assert live.current == 10 * KIB
            del b, c

    def test_a_resized_tensor_counts_with_its_new_size(self) -> None:
        with LiveBytes() as live:
            a = torch.empty(0)
            assert live.current == 0
            a.resize_(KIB)
            assert live.current == 4 * KIB
            del a
            assert (live.current, live.peak) == (0, 4 * KIB)

    def test_out_arguments_and_several_results(self) -> None:
        with LiveBytes() as live:
            a = kib(4).view(32, 32)
            torch.add(a, a, out=a)
            q, r = torch.linalg.qr(a)
            assert live.current == 12 * KIB
            del q, r
            assert live.current == 4 * KIB

    def test_what_autograd_saves_lives_until_the_graph_is_gone(self) -> None:
        with LiveBytes() as live:
            x = kib(4, requires_grad=True)
            y = x.exp()
            z = y.sum()
            del y
            assert live.current == 8 * KIB + 4
            z.backward()
            assert x.grad is not None
            assert live.current == 8 * KIB + 4  # exp's result is gone, the gradient is there
            del z
            assert live.current == 8 * KIB


@pytest.mark.parametrize("size", [0, 7 * KIB])
def test_resized_storages_are_followed_and_torch_is_left_as_it_was(size: int) -> None:
    before = torch.UntypedStorage.resize_
    with LiveBytes() as live:
        a = kib(4)
        a.untyped_storage().resize_(size)
        assert live.current == size
        a.untyped_storage().resize_(4 * KIB)
        assert live.current == 4 * KIB
    assert torch.UntypedStorage.resize_ is before


def test_what_was_made_before_counts_once_it_is_adopted() -> None:
    before = kib(2)
    with LiveBytes() as live:
        live.adopt([before, None, before[3:]], "weights")
        assert live.current == 2 * KIB
        del before
        assert live.current == 0
    assert live.use().parts_at_peak_bytes["weights"] == 2 * KIB


def test_meta_tensors_count_as_what_they_stand_for() -> None:
    with LiveBytes() as live:
        torch.zeros(1 << 30, device="meta")
    assert live.peak == 4 << 30


def test_parts_hold_from_birth_on_and_peaks_are_each_their_own() -> None:
    """A gradient counts as one from the backward pass on, not from the moment it is asked for."""
    weight = kib(4, requires_grad=True)
    with LiveBytes() as live:
        live.adopt([weight], "weights")
        live.watch("gradients", lambda: [weight.grad])
        live.phase("forward")
        kept = [kib(9)]
        loss = (weight * 2).sum()
        live.phase("backward")
        kept.clear()
        loss.backward()
        live.phase("optimizer")
        del loss
        state = kib(6)
        live.watch("optimizer", lambda: [state])
        live.phase("after")
    use = live.use()
    # Forward: weight, kept, product of 4 KiB, loss of 4 bytes. Optimizer: weight, gradient, state.
    assert use.peak_bytes == 17 * KIB + 4
    assert use.peak_phase == "forward"
    assert sum(use.parts_at_peak_bytes.values()) == use.peak_bytes == live.peak
    assert use.parts_at_peak_bytes == {
        "weights": 4 * KIB, "gradients": 0, "optimizer": 0, "activations": 13 * KIB + 4,
    }  # fmt: skip
    assert use.part_peaks_bytes == {
        "weights": 4 * KIB, "gradients": 4 * KIB, "optimizer": 6 * KIB,
        "activations": 13 * KIB + 4,
    }  # fmt: skip
    assert use.sum_of_parts_bytes == 27 * KIB + 4
    assert use.phase_peaks_bytes["optimizer"] == 14 * KIB
    # The backward pass begins with all that the forward pass left (the product is gone by then).
    assert use.phase_peaks_bytes["backward"] == 13 * KIB + 4


def test_a_window_counts_what_was_alive_when_it_began() -> None:
    with LiveBytes() as live:
        big = kib(10)
        del big
        stays = kib(3)
        live.phase("late")
        position = live.position
        small = kib(1)
        end = live.position
        del small
        more = kib(5)
    assert live.use(since=position, until=end).peak_bytes == 4 * KIB
    assert live.use(since=position).peak_bytes == 8 * KIB
    assert live.use(since=live.position).peak_bytes == 8 * KIB
    assert live.use().peak_bytes == 10 * KIB
    assert live.use().peak_phase == "start"
    del stays, more


def test_what_waits_on_the_host_is_in_no_peak() -> None:
    parked: list[torch.Tensor] = []
    with LiveBytes() as live:
        state = kib(6)
        live.watch("optimizer", lambda: [state])
        live.watch_host(lambda: parked)
        live.phase("switch")
        parked.append(state)
        live.phase("forward")
        assert live.current == 0
        activation = kib(2)
        live.phase("switch")
        parked.clear()
        live.phase("backward")
        assert live.current == 8 * KIB
        del activation
        parked.append(state)
        live.phase("after")
        assert live.current == 0
    use = live.use()
    assert use.peak_bytes == 8 * KIB == live.peak
    assert use.host_bytes == 6 * KIB
    assert use.phase_peaks_bytes["forward"] == 2 * KIB
    sizes: dict[int, int] = {}
    sums = []
    for number, size in live.device_sizes():
        sizes[number] = size
        sums.append(sum(sizes.values()))
    assert max(sums) == 8 * KIB
    assert sums[-1] == 0


def test_another_device_is_the_host() -> None:
    with LiveBytes(device="meta") as live:
        a, b = kib(3), kib(2, device="meta")
        assert live.current == 2 * KIB
        del a, b
    use = live.use()
    assert (use.peak_bytes, use.host_bytes) == (2 * KIB, 3 * KIB)


def test_unknown_parts_are_refused() -> None:
    with (
        LiveBytes() as live,
        pytest.raises(UsageError, match=r"unknown part 'gradient';.*gradients"),
    ):
        live.watch("gradient", list)
    with pytest.raises(UsageError, match="activations"):
        live.adopt([], "")


def mlp_step(optimizer_kind: Callable[..., torch.optim.Optimizer], live: LiveBytes) -> None:
    """Two training steps of a small network, announced as the trainer announces its own."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(256, 512), torch.nn.GELU(), torch.nn.Linear(512, 512), torch.nn.ReLU(),
        torch.nn.Linear(512, 8),
    )  # fmt: skip
    optimizer = optimizer_kind(net.parameters(), lr=1e-3)
    live.watch("weights", net.parameters)
    live.watch("gradients", lambda: [p.grad for p in net.parameters()])
    live.watch("optimizer", lambda: [t for s in optimizer.state.values() for t in s.values()])
    for _ in range(2):
        live.phase("forward")
        loss = net(torch.ones(64, 256)).square().mean()
        live.phase("backward")
        loss.backward()
        live.phase("optimizer")
        optimizer.step()
        optimizer.zero_grad()
        live.phase("after")


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False}])
def test_a_training_step_is_the_same_for_fake_tensors_to_the_byte(options: dict[str, bool]) -> None:
    def kind(parameters: Iterator[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=lr, **options)

    with torch.random.fork_rng(), LiveBytes() as real:
        mlp_step(kind, real)
    with FakeTensorMode(), torch.random.fork_rng(), LiveBytes() as fake:
        mlp_step(kind, fake)
    assert fake.use() == real.use()
    # A storage's number depends on the order in which results are looked at; the sizes do not.
    assert [size for _, size in fake.device_sizes()] == [size for _, size in real.device_sizes()]
    use = real.use()
    parameters = (256 * 512 + 512 + 512 * 512 + 512 + 512 * 8 + 8) * 4
    assert use.part_peaks_bytes["weights"] == parameters
    assert use.part_peaks_bytes["gradients"] == parameters
    assert use.part_peaks_bytes["optimizer"] == 2 * parameters + 6 * 4
    assert set(use.parts_at_peak_bytes) == set(PARTS)


def profiled_peak(run: Callable[[], None]) -> int:
    """The largest sum of the allocations that torch's profiler saw."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        run()
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    assert events
    return peak


def test_the_profiler_sees_the_same_bytes() -> None:
    """The allocator's own events: rounded up, and with what kernels take for a moment."""
    live = LiveBytes()

    def run() -> None:
        with live:
            mlp_step(torch.optim.AdamW, live)

    with torch.random.fork_rng():
        torch.ones(8, 8) @ torch.ones(8, 8)  # libraries' own first allocations
        gc.collect()
        peak = profiled_peak(run)
    assert peak == pytest.approx(live.peak, rel=0.002)
