"""CompressionAware on small networks: what one step does, what holding keeps, what the zeros own."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from rankfold import stages
from rankfold.errors import InputError
from rankfold.records import LayerTable, LayerTime
from rankfold.train.checkpoint import Checkpoint
from rankfold.train.layers import matricize
from rankfold.train.proximal import DivergedError, nuclear_norm_prox, singular_values, svd
from rankfold.train.regularizer import CompressionAware

CLOSE = 1e-4  # float32 SVDs of matrices with norms near 1, written back through a division


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, (1, 3), bias=False)
        self.bn2 = nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean(dim=(2, 3)))


def network(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            assert module.running_var is not None
            module.running_var.uniform_(0.2, 3.0)
    return model


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(8, 3, 8, 8)).square().mean().backward()
    optimizer.step()


def idle_steps(model: nn.Module, optimizer: torch.optim.Optimizer, regularizer: CompressionAware, steps: int) -> None:
    """Steps without gradients: only the proximal steps change anything."""
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        regularizer.step()


@pytest.mark.parametrize("form", ["channel", "input-channel", "spatial"])
def test_one_step_is_the_prox_of_the_folded_kernel(form):
    model = network()
    optimizer = sgd(model)
    regularizer = CompressionAware(model, optimizer, low_rank=0.4, every=5, form=form)
    layer = regularizer.layers["conv1"]
    before = layer.kernel("folded")
    idle_steps(model, optimizer, regularizer, 5)
    chosen = layer.form
    assert chosen is not None
    expected = nuclear_norm_prox(chosen.matricize(before), 5 * 0.1 * 0.4)
    torch.testing.assert_close(chosen.matricize(layer.kernel("folded")), expected, atol=CLOSE, rtol=CLOSE)


def test_a_batchnorm_that_processes_share_owns_its_layer_too():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    regularizer = CompressionAware(model, sgd(model), low_rank=0.4)
    assert [layer.norm is not None for layer in regularizer.layers.values()] == [True, True, False]


def test_the_step_moves_scale_into_gamma_and_leaves_the_filters_norms():
    model = network()
    optimizer = sgd(model)
    regularizer = CompressionAware(model, optimizer, low_rank=0.4, every=1)
    norms, gamma = model.conv1.weight.flatten(1).norm(dim=1), model.bn1.weight.clone()
    idle_steps(model, optimizer, regularizer, 1)
    torch.testing.assert_close(model.conv1.weight.flatten(1).norm(dim=1), norms, atol=CLOSE, rtol=CLOSE)
    assert (model.bn1.weight.abs() <= gamma.abs() + CLOSE).all()
    assert not torch.equal(model.bn1.weight, gamma)


def test_an_approximate_solver_lowers_no_rank_before_the_last_step():
    model = network()
    optimizer = sgd(model)
    regularizer = CompressionAware(model, optimizer, low_rank=2.0, every=1, relative=True, solver="newton-schulz")
    full = {layer.name: layer.full_rank for layer in regularizer.summary()}
    before = singular_values(model.fc.weight.detach())
    idle_steps(model, optimizer, regularizer, 1)
    assert float(singular_values(model.fc.weight.detach())[0]) < float(before[0])
    assert {layer.name: layer.rank for layer in regularizer.summary()} == full
    regularizer.finish()  # nothing is pending: exact, and no smaller
    idle_steps(model, optimizer, regularizer, 1)
    optimizer.step()
    regularizer.finish()
    assert all(layer.rank < layer.full_rank for layer in regularizer.summary())


def test_a_layer_that_is_not_finite_is_named():
    model = network()
    optimizer = sgd(model)
    regularizer = CompressionAware(model, optimizer, low_rank=0.4, every=1, scale="raw")
    model.conv2.weight.data[0] = float("inf")
    with pytest.raises(DivergedError, match="layer 'conv2', step 1"):
        idle_steps(model, optimizer, regularizer, 1)


def test_relative_threshold_is_a_share_of_the_largest_singular_value():
    model = network()
    optimizer = sgd(model)
    regularizer = CompressionAware(model, optimizer, low_rank=2.0, every=1, relative=True, form="channel")
    before = svd(model.fc.weight.detach())[1]
    idle_steps(model, optimizer, regularizer, 1)
    after = svd(model.fc.weight.detach())[1]
    torch.testing.assert_close(after, (before - 0.1 * 2.0 * before[0]).clamp_min(0), atol=CLOSE, rtol=CLOSE)


def test_a_dead_group_takes_its_batchnorm_along():
    model = network()
    optimizer = sgd(model)
    regularizer = CompressionAware(model, optimizer, group=1.2, every=1)
    idle_steps(model, optimizer, regularizer, 1)
    dead = ~regularizer.layers["conv2"].live()
    assert 0 < int(dead.sum()) < len(dead)
    for tensor in (model.conv2.weight, model.bn2.weight, model.bn2.bias):
        assert (tensor[dead] == 0).all()
    assert (model.conv2.weight[~dead].flatten(1).norm(dim=1) > 0).all()


def test_a_momentum_from_before_does_not_bring_a_dead_filter_back():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    regularizer = CompressionAware(model, optimizer, group=0.4, every=5)
    for _ in range(5):
        train_step(model, optimizer)
        regularizer.step()
    dead = ~regularizer.layers["conv2"].live()
    assert dead.any()
    for _ in range(3):  # no step is due
        train_step(model, optimizer)
        regularizer.step()
    assert torch.equal(~regularizer.layers["conv2"].live(), dead)


def test_the_layer_that_makes_the_output_has_no_groups():
    model = network()
    optimizer = sgd(model)
    regularizer = CompressionAware(model, optimizer, group=1e4, every=1, guard=False)
    idle_steps(model, optimizer, regularizer, 1)
    assert regularizer.layers["conv1"].live().sum() == 0
    assert (model.fc.bias != 0).all()  # its weights only see dead channels now; the outputs are still there
    assert next(row for row in regularizer.summary() if row.name == "fc").groups is None


def test_weights_behind_dead_channels_count_for_no_rank():
    model = network()
    optimizer = sgd(model)
    regularizer = CompressionAware(model, optimizer, low_rank=1e-6, every=1)
    regularizer.layers["conv1"].kill([2, 3, 4, 5, 6, 7])
    idle_steps(model, optimizer, regularizer, 1)
    assert (model.conv2.weight[:, 2:] == 0).all()
    assert next(row for row in regularizer.summary() if row.name == "conv2").rank <= 6


def test_step_sizes_add_up_and_scaled_steps_that_were_skipped_do_not_count():
    model = network()
    optimizer = sgd(model)
    regularizer = CompressionAware(model, optimizer, low_rank=1e-3, every=100)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for lr, poison in ((0.1, False), (0.2, True), (0.3, False)):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss = model(torch.randn(4, 3, 8, 8)).square().mean()
        scaler.scale(loss * (float("inf") if poison else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        regularizer.step()
    state = regularizer.state_dict()
    assert state["steps"] == 2
    assert state["pending"] == pytest.approx([0.4])


def test_holding_keeps_ranks_and_filters_through_training():
    model = network()
    optimizer = sgd(model, lr=0.05)
    regularizer = CompressionAware(model, optimizer, low_rank=0.5, group=0.4, every=2, hold_at=20, tile=2)
    for _ in range(20):
        train_step(model, optimizer)
        regularizer.step()
    held = copy.deepcopy(regularizer.state_dict()["held"])
    assert held is not None
    for _ in range(20):
        train_step(model, optimizer)
        regularizer.step()
    regularizer.finish()
    for row in regularizer.summary():
        rank, dead = held[row.name]
        assert rank is None or (row.rank <= rank and rank % 2 == 0)
        if row.groups is not None:
            weight = model.state_dict()[f"{row.name}.weight"]
            assert (weight[dead] == 0).all()


def test_finish_takes_the_step_that_is_due():
    model = network()
    optimizer = sgd(model)
    regularizer = CompressionAware(model, optimizer, low_rank=0.4, every=1000)
    idle_steps(model, optimizer, regularizer, 3)
    before = svd(model.fc.weight.detach())[1]
    regularizer.finish()
    after = svd(model.fc.weight.detach())[1]
    torch.testing.assert_close(after, (before - 3 * 0.1 * 0.4).clamp_min(0), atol=CLOSE, rtol=CLOSE)
    assert regularizer.state_dict()["pending"] == [0.0]


def test_with_a_tile_the_strongest_stay():
    model = network()
    optimizer = sgd(model)
    regularizer = CompressionAware(model, optimizer, low_rank=1e3, group=1e3, every=1, tile=4)
    idle_steps(model, optimizer, regularizer, 1)
    assert [int(regularizer.layers[name].live().sum()) for name in ("conv1", "conv2")] == [4, 4]
    assert [row.rank for row in regularizer.summary()] == [4, 4, 4]


def table(times: dict[str, dict[int, float]]) -> list[LayerTime]:
    """Rows of a latency table for layers that take the same share of the time, in the channel or linear form."""
    return [
        LayerTime(
            layers=[name], share=1 / len(times), form="linear" if name == "fc" else "channel", ranks=[rank], ratio=ratio
        )
        for name, ways in times.items()
        for rank, ratio in ways.items()
    ]


def test_with_a_latency_table_strength_goes_where_time_is():
    """conv1 can save three times what conv2 can, fc nothing; the ranks below the smallest useful one are exempt."""
    model = network()
    optimizer = sgd(model)
    rows = table({"conv1": {2: 0.4, 5: 0.8}, "conv2": {4: 0.8, 8: 0.8}, "fc": {2: 1.1}})
    regularizer = CompressionAware(model, optimizer, low_rank=0.4, every=1, form="channel", table=rows)
    layers = [(layer, layer.kernel("folded")) for layer in regularizer.layers.values()]
    idle_steps(model, optimizer, regularizer, 1)
    for (layer, before), strength, exempt in zip(layers, (1.5, 0.5, 0.0), (2, 8, 0), strict=True):
        assert layer.form is not None
        expected = nuclear_norm_prox(matricize(layer.form, before), 0.1 * 0.4 * strength, exempt)
        found = matricize(layer.form, layer.kernel("folded"))
        torch.testing.assert_close(found, expected, atol=CLOSE, rtol=CLOSE)


def test_with_a_latency_table_ranks_are_held_where_they_are_faster():
    model = network()
    optimizer = sgd(model)
    rows = table({"conv1": {2: 0.4, 4: 0.4, 6: 0.7}, "conv2": {2: 1.3, 3: 0.9}, "fc": {2: 1.1}})
    regularizer = CompressionAware(model, optimizer, low_rank=0.02, every=1, form="channel", table=rows)
    regularizer.hold()
    for _ in range(3):
        train_step(model, optimizer)
        regularizer.step()
    regularizer.finish()
    ranks = {row.name: (row.rank, row.full_rank) for row in regularizer.summary()}
    assert ranks["conv1"] == (8, 8)  # dense is nearest to a full rank
    assert ranks["conv2"] == (12, 12)
    regularizer = CompressionAware(model, optimizer, low_rank=90.0, every=1, form="channel", table=rows)
    idle_steps(model, optimizer, regularizer, 1)
    regularizer.hold()
    ranks = {row.name: row.rank for row in regularizer.summary()}
    assert (ranks["conv1"], ranks["conv2"], ranks["fc"]) == (4, 3, 4)


def test_a_latency_table_is_part_of_the_state(tmp_path):
    rows = table({"conv1": {2: 0.4}, "conv2": {4: 0.8}})
    LayerTable(device="host", threads=1, rows=rows).write(tmp_path / "table.json")
    model = network()
    optimizer = sgd(model)
    regularizer = CompressionAware(model, optimizer, low_rank=0.1, table=tmp_path / "table.json")
    CompressionAware(model, optimizer, low_rank=0.1, table=rows).load_state_dict(regularizer.state_dict())
    for other in (None, rows[:1]):
        changed = CompressionAware(model, optimizer, low_rank=0.1, table=other)
        with pytest.raises(InputError, match="the latency table is not the one that this training began with"):
            changed.load_state_dict(regularizer.state_dict())
    stored = Checkpoint({}, {"regularizer": json.loads(json.dumps(regularizer.state_dict()))})
    assert stages.table_of(stored) == rows
    assert stages.table_of(Checkpoint({}, {"regularizer": None})) is None


def test_a_layer_keeps_at_least_as_many_filters_as_named():
    model = network()
    optimizer = sgd(model)
    regularizer = CompressionAware(
        model, optimizer, group=50.0, every=1, least={"conv2": 5}, group_factors={"conv1": 0.0}
    )
    strongest = regularizer.layers["conv2"]
    norms = torch.linalg.vector_norm(strongest.group_rows(strongest.kernel("folded")), dim=1)
    idle_steps(model, optimizer, regularizer, 3)
    assert set(strongest.live().nonzero().flatten().tolist()) == set(norms.topk(5).indices.tolist())
    regularizer.hold()
    assert strongest.live().sum() == 5


def test_holds_once_the_exported_network_is_small_enough():
    model = network()
    optimizer = sgd(model)
    regularizer = CompressionAware(model, optimizer, low_rank=0.5, group=0.3, every=1, tile=2, hold_macs=0.4)
    model(torch.randn(2, 3, 8, 8))
    now, dense = regularizer.macs()
    assert now == dense == 8 * 27 * 64 + 12 * 24 * 48 + 48
    while regularizer.state_dict()["held"] is None:
        assert regularizer.macs()[0] > 0.4 * dense
        idle_steps(model, optimizer, regularizer, 1)
    assert regularizer.macs()[0] <= 0.4 * dense


def test_penalty_falls_and_is_that_of_the_objective():
    model = network()
    optimizer = sgd(model)
    regularizer = CompressionAware(model, optimizer, low_rank=0.3, every=1, skip=("conv1", "conv2"))
    assert regularizer.penalty() == pytest.approx(0.3 * float(svd(model.fc.weight.detach())[1].sum()), rel=CLOSE)
    before = regularizer.penalty()
    idle_steps(model, optimizer, regularizer, 1)
    assert regularizer.penalty() < before


def test_state_makes_the_next_step_the_same():
    first, second = network(), network()
    optimizers = sgd(first), sgd(second)
    settings = {"low_rank": 0.3, "group": 0.2, "every": 4}
    one = CompressionAware(first, optimizers[0], **settings)
    idle_steps(first, optimizers[0], one, 3)
    two = CompressionAware(second, optimizers[1], **settings)
    two.load_state_dict(one.state_dict())
    second.load_state_dict(first.state_dict())
    idle_steps(first, optimizers[0], one, 1)
    idle_steps(second, optimizers[1], two, 1)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_diverged_weights_name_layer_and_step():
    model = network()
    optimizer = sgd(model)
    regularizer = CompressionAware(model, optimizer, low_rank=0.1, every=1)
    model.conv2.weight.data[0, 0] = float("nan")
    with pytest.raises(Exception, match=r"layer 'conv2', step 1: .*NaN"):
        idle_steps(model, optimizer, regularizer, 1)


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low_rank": -1.0}, "low_rank must be 0 or more, found -1.0"),
        ({"form": "tensor-train"}, "unknown form 'tensor-train'; use one of channel"),
        ({"groups": "channel"}, "unknown groups 'channel'; use 'filter' or 'coupled'"),
        ({"skip": ("conv9",)}, "skip names no layer 'conv9'; the layers are conv1"),
        ({"least": {"conv9": 4}}, "least names no layer 'conv9'; the layers are conv1"),
        ({"group_factors": {"fc": 2.0}}, "factors name no layer 'fc'"),
        ({"every": 0}, "every and tile must be 1 or more"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    model = network()
    with pytest.raises(InputError, match=message):
        CompressionAware(model, sgd(model), **settings)


def test_other_bad_models_are_refused():
    model = network()
    with pytest.raises(InputError, match="layer 'conv1' is not in the optimizer"):
        CompressionAware(model, torch.optim.SGD(model.fc.parameters(), lr=0.1))
    with pytest.raises(InputError, match=r"torch\.fx cannot trace Untraceable"):
        CompressionAware(Untraceable(), sgd(Untraceable()))
    with pytest.raises(InputError, match="has no Conv1d, Conv2d or Linear layer"):
        CompressionAware(nn.ReLU(), sgd(nn.Linear(1, 1)))
    unborn = network()
    nn.init.zeros_(unborn.bn2.weight)
    with pytest.raises(InputError, match="layer 'conv2' starts at γ = 0, so its filters look dead; give start_at"):
        CompressionAware(unborn, sgd(unborn))
    CompressionAware(unborn, sgd(unborn), start_at=5)
