from __future__ import annotations

from pathlib import Path

import pytest

from rankfold.devices import card
from rankfold.errors import InputError

GOOD = 'name = "bench-pi"\nabout = "a Pi on the bench"\ntransport = "local"\ntested = "never"\n'


@pytest.fixture(autouse=True)
def own_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "rankfold" / "devices"
    folder.mkdir(parents=True)
    return folder


def test_the_host_card_is_shipped():
    assert "host" in card.names()
    assert card.find("host").transport == "local"


def test_the_users_cards_are_found_and_go_first(own_cards: Path):
    (own_cards / "bench-pi.toml").write_text(GOOD)
    (own_cards / "host.toml").write_text(GOOD.replace("bench-pi", "host"))
    (own_cards / "notes.txt").write_text("no card")
    assert {"bench-pi", "host"} <= set(card.names())
    assert "notes" not in card.names()
    assert card.find("bench-pi").about == "a Pi on the bench"
    assert card.find("host").about == "a Pi on the bench"


def test_an_unknown_device_names_the_known_ones(own_cards: Path):
    (own_cards / "bench-pi.toml").write_text(GOOD)
    with pytest.raises(InputError, match="unknown device 'pi9'; known are aarch64, bench-pi, host"):
        card.find("pi9")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (GOOD.replace("bench-pi", "other"), "calls its device 'other'"),
        (GOOD + "speed = 3\n", r"bench-pi\.toml: unknown key 'speed'"),
        (GOOD.replace("local", "telepathy"), r"bench-pi\.toml: 'transport'"),
        (GOOD + "emulated = true\n", r"bench-pi\.toml: .*transport local has no emulated"),
        ("name = ", r"bench-pi\.toml: expected TOML"),
        ("\udcff", r"bench-pi\.toml: expected TOML"),
    ],
)
def test_a_bad_card_is_refused_by_name(own_cards: Path, text: str, match: str):
    (own_cards / "bench-pi.toml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=match):
        card.find("bench-pi")
