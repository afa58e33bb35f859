"""The guard: it says where a layer or a network collapses, goes back, and goes on the same after a restart."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from rankfold.records import TrainRecord
from rankfold.train import checkpoint, data
from rankfold.train.guard import SPAN, Guard, ill_layer
from rankfold.train.proximal import DivergedError
from rankfold.train.regularizer import CompressionAware
from rankfold.train.strength import RELIEF
from rankfold.train.trainer import CHECKPOINT, METRICS, RECORD, train

from .recipes import tiny
from .test_regularizer import idle_steps, network, train_step

CHANCE, PATIENCE = math.log(4), 40


def aware(**settings):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, CompressionAware(model, optimizer, **{"low_rank": 1e-3, "every": 1, **settings})


@pytest.mark.parametrize("relative", [False, True])
def test_no_layer_loses_its_last_rank_or_filter(relative, caplog):
    model, optimizer, regularizer = aware(low_rank=1e3, group=1e3, relative=relative)
    largest = torch.linalg.matrix_norm(model.fc.weight.detach(), 2)
    idle_steps(model, optimizer, regularizer, 1)
    assert all(layer.live().any() for layer in regularizer.layers.values())
    assert float(torch.linalg.matrix_norm(model.fc.weight.detach(), 2) / largest) == pytest.approx(0.9, rel=1e-3)
    assert {event.layer for event in regularizer.events} == {"conv1", "conv2", "fc"}
    assert any(
        "step 1: layer 'fc': its rank would fall to 0; its low_rank strength is lowered" in m for m in caplog.messages
    )
    said = len(regularizer.events)
    idle_steps(model, optimizer, regularizer, 3)
    assert len(regularizer.events) == said  # the strengths fit now
    unguarded, optimizer, regularizer = aware(low_rank=1e3, relative=relative, guard=False)
    idle_steps(unguarded, optimizer, regularizer, 1)
    assert not unguarded.fc.weight.any()


def loss_after(guard, losses):
    return [guard.step(loss) for loss in losses]


def test_a_loss_half_way_back_to_chance_brings_the_good_state_back():
    model, optimizer, regularizer = aware()
    guard = Guard(regularizer, CHANCE)
    assert not any(loss_after(guard, [0.2] * (2 * SPAN)))
    good = {name: value.clone() for name, value in model.state_dict().items()}
    train_step(model, optimizer)  # something else than the good state
    back = loss_after(guard, [CHANCE] * SPAN)
    assert back.index(True) < SPAN
    assert regularizer.strength == RELIEF
    (event,) = regularizer.events
    assert event.layer is None
    assert "the loss has risen from 0.2 to" in event.what
    assert "strengths at 0.25 of those given" in event.what
    after_first = {name: value.clone() for name, value in guard.good.items()}
    assert all(torch.equal(value, after_first[f"model.{name}"]) for name, value in good.items())


def test_a_network_that_learns_nothing_begins_anew_with_weaker_strengths():
    model, optimizer, regularizer = aware()
    guard = Guard(regularizer, CHANCE, patience=PATIENCE)
    begun = {name: value.clone() for name, value in model.state_dict().items()}
    went_back = []
    for _ in range(PATIENCE):
        train_step(model, optimizer)
        if not went_back:
            begun = begun if guard.good else {name: value.clone() for name, value in model.state_dict().items()}
        went_back.append(guard.step(CHANCE))
    assert went_back == [False] * (PATIENCE - 1) + [True]
    assert all(torch.equal(value, begun[name]) for name, value in model.state_dict().items())


def test_a_network_that_shrinks_before_it_has_learned_begins_anew_at_once():
    model, optimizer, regularizer = aware(low_rank=4.0, relative=True, every=2)
    guard = Guard(regularizer, CHANCE, patience=PATIENCE)
    went_back = []
    for _ in range(PATIENCE // 2):
        train_step(model, optimizer)
        went_back.append(guard.step(CHANCE))
    assert went_back[:2] == [False, True]
    assert went_back.count(True) < 6
    (first, *_) = regularizer.events[-went_back.count(True) :]
    assert "of the MACs are left, and nothing has been learned yet; back to the last good state" in first.what
    now, dense = regularizer.macs()
    assert now > dense / 4

    model, optimizer, regularizer = aware(low_rank=4.0, relative=True, every=2)
    guard = Guard(regularizer, CHANCE, patience=PATIENCE)
    for _ in range(SPAN):
        train_step(model, optimizer)
        assert not guard.step(0.5 * CHANCE)  # it learns: how small it is may be left to the strengths


def test_what_was_held_is_free_again_and_the_guard_ends_once_all_is_well():
    model, optimizer, regularizer = aware(hold_at=SPAN + 5, every=5)
    guard = Guard(regularizer, CHANCE)
    for _ in range(SPAN + 5):
        train_step(model, optimizer)
        guard.step(0.1)
    assert regularizer.is_held
    assert any(guard.step(CHANCE) for _ in range(SPAN - 6))  # stops at the first
    assert not regularizer.is_held
    for _ in range(2 * SPAN):
        train_step(model, optimizer)
        guard.step(0.1)
    assert regularizer.is_held
    assert guard.state_dict()["over"]
    assert guard.good == {}


def test_a_guard_gives_up_with_one_line():
    _, _, regularizer = aware()
    guard = Guard(regularizer, CHANCE)
    guard.step(0.1)
    with pytest.raises(
        DivergedError, match=r"the loss is nan; going back 6 times did not help, lower the learning rate"
    ):
        loss_after(guard, [math.nan] * 7)
    assert regularizer.strength == RELIEF**6


def test_its_state_is_all_there_is():
    _, _, regularizer = aware()
    guard = Guard(regularizer, CHANCE)
    loss_after(guard, [0.3] * (SPAN + 3))
    other = Guard(regularizer, CHANCE)
    other.load_state_dict(json.loads(json.dumps(guard.state_dict())), dict(guard.good))
    back = [loss_after(one, [1.2] * SPAN) for one in (guard, other)]
    assert back[0] == back[1]
    assert any(back[0])


def test_the_first_layer_that_puts_out_nan_is_named():
    model = network()
    images = torch.randn(4, 3, 8, 8)
    assert ill_layer(model, images) is None
    nn.init.constant_(model.conv2.weight, float("nan"))
    assert ill_layer(model, images) == "conv2"


@pytest.fixture(scope="module")
def glyphs():
    return data.load(tiny().data)


def test_a_diverging_training_names_step_and_layer(tmp_path, glyphs):
    for regularizer in (None, {"low_rank": 0.01, "every": 3}):
        wild = tiny(optimizer={"lr": 1e30, "batch_size": 16, "steps": 30}, regularizer=regularizer)
        with pytest.raises(
            DivergedError, match=r"(at step \d+: layer 'c.*' is the first to put out NaN|layer '.*', step \d+)"
        ):
            train(wild, glyphs, tmp_path)


class _Stop(Exception):
    pass


def collapsing():
    """A recipe whose strengths are a thousand times too large: without the guard it ends at rank 0."""
    strong = {"low_rank": 50.0, "group": 20.0, "every": 3, "hold_from": 0.6}
    return tiny(regularizer=strong, optimizer={"lr": 0.05, "batch_size": 16, "steps": 12})


def test_the_guard_is_in_metrics_and_record_and_resuming_is_exact(tmp_path, glyphs):
    record = train(collapsing(), glyphs, tmp_path / "whole")
    events = [event for row in record.epochs for event in row.events]
    assert events
    assert events[0].step == 3
    assert TrainRecord.read(tmp_path / "whole" / RECORD).epochs[0].events == record.epochs[0].events
    assert "its rank would fall to 0" in (tmp_path / "whole" / METRICS).read_text()

    def stop(progress):
        if progress.step == 5:
            raise _Stop

    with pytest.raises(_Stop, match=r"^$"):
        train(collapsing(), glyphs, tmp_path / "cut", on_progress=stop, checkpoint_every_s=0.0)
    train(collapsing(), glyphs, tmp_path / "cut", resume=True)
    ours, theirs = (checkpoint.load(tmp_path / name / CHECKPOINT).tensors for name in ("cut", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert any(name.startswith("good.") for name in theirs)
