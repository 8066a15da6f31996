"""What users do with modules works with this one: saving, moving, autocast, compiling, DDP, torch.func."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from isthmus.models import Adaptive, LeakyResNet


def network(seed: int = 0, **changes: object) -> LeakyResNet:
    settings: dict[str, object] = {"width": 8, "depth": 6, "effective_depth": 2.0, "steps": Adaptive(), "seed": seed}
    net = LeakyResNet(5, 3, **(settings | changes))  # pyright: ignore[reportArgumentType]
    net.set_layer_steps(torch.tensor([0.1, 0.2, 0.2, 0.1, 0.1, 0.3]))
    return net


def test_state_dict_round_trip_carries_maps_and_layer_steps() -> None:
    for maps in ("fixed", "learned"):
        source, target = (network(seed, input_map=maps, output_map=maps) for seed in (1, 2))
        target.set_layer_steps(torch.full((6,), 1 / 6))
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        target.load_state_dict(torch.load(file, weights_only=True), strict=True)
        x = torch.randn(4, 5)
        assert torch.equal(source(x), target(x))
        assert torch.equal(source.positions(), target.positions())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
@pytest.mark.parametrize("activation", ["relu", "identity", "smooth_relu"])
def test_copies_are_equal_and_independent(copied: object, activation: str) -> None:
    assert callable(copied)
    net, x = network(activation=activation), torch.randn(4, 5)
    twin = copied(net)
    assert torch.equal(twin(x), net(x))
    assert twin.steps == net.steps
    before = net(x).detach()
    with torch.no_grad():
        twin.weight.zero_()
    assert torch.equal(net(x), before)


def test_moving_between_dtypes_and_devices() -> None:
    net = network().to(torch.float32)
    assert {t.dtype for t in net.state_dict().values()} == {torch.float32}
    assert net(torch.randn(4, 5, dtype=torch.float32)).dtype == torch.float32
    meta = network().to("meta")
    assert meta(torch.randn(4, 5, device="meta")).shape == (4, 3)
    born = LeakyResNet(5, 3, width=8, depth=6, effective_depth=2.0, device="meta", dtype=torch.float32)
    assert {t.device.type for t in born.state_dict().values()} == {"meta"}
    with torch.device("meta"):
        context = LeakyResNet(5, 3, width=8, depth=6, effective_depth=2.0)
    assert {t.device.type for t in context.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("maps", ["fixed", "learned"])
def test_autocast_keeps_the_path_in_the_parameters_dtype(maps: str) -> None:
    seen: list[torch.dtype] = []

    def watched_relu(z: Tensor) -> Tensor:
        seen.append(z.dtype)
        return z.relu()

    net = network(dtype=torch.float32, input_map=maps, output_map=maps, activation=watched_relu)
    x = torch.randn(16, 5, dtype=torch.float32)
    exact = net.path(x)
    with torch.autocast("cpu", torch.bfloat16):
        path, out = net.path(x), net(x)
        out.float().square().mean().backward()
    assert set(seen) == {torch.float32}
    assert path.dtype == torch.float32
    assert out.dtype == torch.bfloat16
    error = float(((path - exact).norm() / exact.norm()).detach())
    assert 1e-5 < error < 6 * 2**-8  # one bfloat16 rounding (2⁻⁸) per layer at most; and rounding did take place
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())


COMPILED = """
    import sys, torch
    from isthmus.models import LeakyResNet
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for maps, phi in (("fixed", "relu"), ("learned", "relu"), ("fixed", "identity"), ("fixed", "smooth_relu")):
        net = LeakyResNet(5, 3, width=8, depth=3, effective_depth=2.0, input_map=maps, activation=phi,
                          dtype=torch.float64)
        fast = torch.compile(net, fullgraph=True, backend=sys.argv[1])
        path = torch.compile(net.path, fullgraph=True, backend="eager")
        x = torch.randn(4, 5, dtype=torch.float64)
        torch.testing.assert_close(fast(x), net(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(path(x), net.path(x), rtol=1e-12, atol=1e-12)
        grads = []
        for f in (fast, net):
            net.zero_grad()
            (f(x).square().mean() + net.weight_cost()).backward()
            grads.append([p.grad.clone() for p in net.parameters()])
        torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)
    print("compiled")
"""


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_in_one_graph(backend: str, tmp_path: Path) -> None:
    # In a process of its own: the shape checker of the tests, which users do not have, cannot be traced.
    script = tmp_path / "compiled.py"
    script.write_text(textwrap.dedent(COMPILED))
    done = subprocess.run([sys.executable, script, backend], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "compiled\n", done.stderr[-3000:]


def test_distributed_data_parallel(tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        net = network(input_map="learned")
        alone = copy.deepcopy(net)
        shared = torch.nn.parallel.DistributedDataParallel(net)
        x = torch.randn(4, 5)
        shared(x).square().mean().backward()
        alone(x).square().mean().backward()
        for (name, p), q in zip(net.named_parameters(), alone.parameters(), strict=True):
            assert p.grad is not None, name
            assert q.grad is not None, name
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-14, atol=1e-15)
    finally:
        torch.distributed.destroy_process_group()


def test_vmap_over_samples_gives_jacobians_and_per_sample_gradients() -> None:
    net, x, y = network(input_map="learned"), torch.randn(4, 5), torch.randn(4, 3)
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def one(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(net, values, (sample[None],))[0]

    def loss(values: dict[str, Tensor], sample: Tensor, target: Tensor) -> Tensor:
        return (one(values, sample) - target).square().sum()

    torch.testing.assert_close(torch.func.vmap(one, (None, 0))(parameters, x), net(x), rtol=1e-12, atol=1e-12)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        jacobians = torch.func.vmap(transform(one, argnums=1), (None, 0))(parameters, x)
        for n in range(4):
            dense = torch.autograd.functional.jacobian(lambda s: net(s[None])[0], x[n])
            torch.testing.assert_close(jacobians[n], dense, rtol=1e-12, atol=1e-12)
    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x, y)
    (net(x) - y).square().sum().backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(gradients[name].sum(0), parameter.grad, rtol=1e-10, atol=1e-12)


def test_ensembles_by_vmap_over_stacked_parameters() -> None:
    nets = [network(seed) for seed in range(3)]
    nets[1].set_layer_steps(torch.full((6,), 1 / 6))
    parameters, buffers = torch.func.stack_module_state(list[torch.nn.Module](nets))
    x = torch.randn(4, 5)

    def outputs(values: dict[str, Tensor], constants: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(nets[0], (values, constants), (x,))

    together = torch.func.vmap(outputs)(parameters, buffers)
    torch.testing.assert_close(together, torch.stack([net(x) for net in nets]), rtol=1e-12, atol=1e-12)
