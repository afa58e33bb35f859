"""The commands about boards: list, add, remove, check, set up, probe."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from .errors import DeviceError

devices_app = typer.Typer(
    help="The boards rankfold knows: list them, add one, see whether it is fit to measure on.",
    no_args_is_help=True,
    epilog="Examples:  [bold]rankfold devices add bench-pi --like pi4 --host pi@192.168.1.20[/]   "
    "[bold]rankfold devices setup bench-pi; rankfold devices check bench-pi[/]",
)
Device = Annotated[str, typer.Argument(help="A device that `devices list` names.")]


@devices_app.command("list", epilog="Example:  [bold]rankfold devices list[/]")
def list_() -> None:
    """The devices there are cards for."""
    from .devices import card
    from .terminal import plain

    for name in card.names():
        found = card.find(name)
        where = "here" if found.host is None else found.host
        print(plain(f"{found.name:18} {found.transport:6} {where:20} tested: {found.tested:11} {found.about}"))


@devices_app.command(epilog="Example:  [bold]rankfold devices add bench-pi --like pi4 --host pi@192.168.1.20[/]")
def add(
    name: Annotated[str, typer.Argument(help="What to call it: small letters, digits, dots, dashes.")],
    host: Annotated[
        str | None, typer.Option(help="Its address, or its name in ~/.ssh/config; user@ may stand before.")
    ] = None,
    like: Annotated[str | None, typer.Option(help="A device of the same kind, e.g. pi4.")] = None,
    port: Annotated[int | None, typer.Option(help="Of its ssh server.  [default: what ~/.ssh/config says]")] = None,
    about: Annotated[str | None, typer.Option(help="A line about it.")] = None,
    python: Annotated[str, typer.Option(help="The interpreter there.")] = "python3",
    runner: Annotated[str | None, typer.Option(help="A program there instead, such as docs/board.c.")] = None,
    workdir: Annotated[str, typer.Option(help="The folder there, from the home folder.")] = ".cache/rankfold",
    ssh_config: Annotated[
        str | None, typer.Option(help="A configuration file for ssh instead of ~/.ssh/config.")
    ] = None,
) -> None:
    """Write a card for a board that ssh reaches into your configuration folder; asks for what is not given."""
    from .devices import card

    if host is None:
        host = str(typer.prompt("Its address, or its name in ~/.ssh/config"))
        like = like or str(typer.prompt("A device of its kind (rankfold devices list)", default="aarch64"))
    model = card.find(like or "aarch64")
    user, at, address = host.rpartition("@")
    told = {
        "name": name,
        "about": about or model.about,
        "transport": "ssh",
        "host": address,
        "user": user if at else None,
        "port": port,
        "ssh_config": ssh_config,
        "python": python,
        "runner": runner,
        "workdir": workdir,
        "emulated": model.is_emulated or None,
        "expected_architecture": model.expected_architecture,
        "tested": "never",
    }
    print(card.write({key: value for key, value in told.items() if value is not None}))
    print(f"next: rankfold devices setup {name}" if runner is None else f"next: rankfold devices check {name}")


@devices_app.command(epilog="Example:  [bold]rankfold devices remove bench-pi[/]")
def remove(name: Device) -> None:
    """Delete a card of your own; the board stays as it is."""
    from .devices import card

    print(f"removed {card.remove(name)}")


@devices_app.command(epilog="Example:  [bold]rankfold devices check bench-pi[/]")
def check(
    name: Device, as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each finding.")] = False
) -> None:
    """Is a board fit to measure on? Each thing that is not fine comes with its remedy; exit code 3 if it is not."""
    from .devices import card
    from .devices.check import check as findings
    from .terminal import plain

    failed: list[str] = []
    for found in findings(card.find(name)):
        remedy = f"; {found.remedy}" if found.remedy else ""
        line = f"{found.state:8} {found.item:12} {found.found}{remedy}"
        print(json.dumps(asdict(found)) if as_json else plain(line), flush=True)
        failed += [found.item] if found.state == "failed" else []
    if failed:
        raise DeviceError(f"device '{name}' is not ready: {', '.join(failed)}")


@devices_app.command(epilog="Example:  [bold]rankfold devices setup bench-pi[/]")
def setup(name: Device) -> None:
    """Install numpy and onnxruntime on a board: collected here, sent over ssh, in a virtual environment there."""
    from .devices import card
    from .devices.setup import set_up
    from .terminal import plain

    done = set_up(card.find(name), lambda what: print(plain(what), flush=True))
    print(plain(", ".join(f"{package} {version}" for package, version in done.versions.items())))


@devices_app.command(epilog="Example:  [bold]rankfold devices probe host[/]")
def probe(name: Device) -> None:
    """What a device turns out to be: CPU, vector extensions, tile, versions, providers, clocks."""
    from .stages import probe_device

    for found in probe_device(name):
        print(json.dumps(found.model_dump(), indent=1))
