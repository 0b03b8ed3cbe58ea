"""`cncmon-agent buffer ls|verify|export`: the arguments, and what is printed."""

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from cncmon_agent.buffer.disk import Disk
from cncmon_agent.inspect import export, listing, text, verify
from cncmon_agent.inspect.errors import InspectError
from cncmon_agent.inspect.folder import DataFolder
from cncmon_agent.settings import AgentSettings
from cncmon_core import names
from cncmon_core.errors import InvalidNameError
from cncmon_core.settings import variable_of

OK, FOUND_DAMAGE, FAILED = 0, 1, 2


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `buffer` to the commands of a parser; `run` then does what was asked for."""
    help_text = "Look at the batches on disk, check them, or copy them into a file. Works beside a running agent."
    buffer = commands.add_parser("buffer", help=help_text, description=help_text)
    actions = buffer.add_subparsers(dest="action", required=True, metavar="ls|verify|export")
    places = argparse.ArgumentParser(add_help=False)
    places.add_argument(
        "--data-dir",
        type=Path,
        default=Path(_setting("data_dir")),
        help="the agent's data folder or a copy of it (CNCMON_AGENT_DATA_DIR; default: %(default)s)",
    )
    places.add_argument(
        "--cold-dir",
        type=Path,
        default=_setting("cold_dir") or None,
        help="its cold tier, where that is elsewhere (CNCMON_AGENT_COLD_DIR)",
    )
    _add_ls(actions, places)
    _add_verify(actions, places)
    _add_export(actions, places)


def _add_ls(actions: Any, places: argparse.ArgumentParser) -> None:
    what = "List what is on disk, by epoch (one start of the agent) and tier."
    parser = actions.add_parser("ls", parents=[places], help=what, description=what)
    parser.add_argument("--files", action="store_true", help="list every segment file")
    parser.add_argument("--json", action="store_true", help="print one JSON document for programs")
    parser.set_defaults(do=_ls)


def _add_verify(actions: Any, places: argparse.ArgumentParser) -> None:
    what = "Check every record's CRC, every batch's SHA-256 and every sealed segment's hash. Exit status 1: damage."
    parser = actions.add_parser("verify", parents=[places], help=what, description=what)
    parser.add_argument("--json", action="store_true", help="print one JSON document for programs")
    parser.set_defaults(do=_verify)


def _add_export(actions: Any, places: argparse.ArgumentParser) -> None:
    what = "Copy the batches into one file, to be imported on the cloud side. Exit status 1: some were damaged."
    parser = actions.add_parser("export", parents=[places], help=what, description=what)
    parser.add_argument("--out", type=Path, required=True, help="the file to write; it appears when it is whole")
    parser.add_argument("--format", choices=export.FORMATS, default="jsonl", help="default: %(default)s")
    parser.add_argument("--epoch", type=int, help="this epoch only")
    parser.add_argument(
        "--since",
        metavar="TIME",
        type=_since,
        help="batches made since a time (2026-03-01T06:00, UTC) or an age (90m, 24h, 7d), by the agent's clock",
    )
    parser.add_argument("--site", help="default: what the data folder says, else CNCMON_AGENT_SITE")
    parser.add_argument("--edge", help="default: what the data folder says, else CNCMON_AGENT_EDGE")
    parser.add_argument("--overwrite", action="store_true", help="replace the file where it exists")
    parser.set_defaults(do=_export)


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked for; return the exit status: 0, 1 where damage was found, 2 where it can't be done."""
    try:
        folder = DataFolder(arguments.data_dir, arguments.cold_dir)
        folder.check()
        status: int = arguments.do(folder, arguments)
    except InspectError as error:
        print(f"cncmon-agent buffer {arguments.action}: {error}", file=sys.stderr)
        return FAILED
    return status


def _ls(folder: DataFolder, arguments: argparse.Namespace) -> int:
    found = listing.look(folder, Disk())
    _print([_json(found)] if arguments.json else list(listing.lines(found, files=arguments.files)))
    return OK


def _verify(folder: DataFolder, arguments: argparse.Namespace) -> int:
    verdict = verify.check(folder, Disk())
    _print([_json(verdict)] if arguments.json else verify.lines(verdict))
    return FOUND_DAMAGE if verdict.problems else OK


def _export(folder: DataFolder, arguments: argparse.Namespace) -> int:
    said = folder.epochs()
    site = _whose("site", arguments.site, said.site if said else "")
    edge = _whose("edge", arguments.edge, said.edge if said else "")
    wanted = export.Wanted(site, edge, arguments.epoch, arguments.since)
    summary = export.write(
        folder, Disk(), wanted, arguments.out, export.FORMATS[arguments.format], overwrite=arguments.overwrite
    )
    _print(export.lines(summary))
    return FOUND_DAMAGE if summary.damage else OK


def _whose(field: str, given: str | None, noted: str) -> str:
    """Return the site or edge of an export: as given, as the folder has it, or as the environment says."""
    name = given or noted or os.environ.get(variable_of("AGENT", field), "").strip()
    if not name:
        raise InspectError(f"the data folder does not say which {field} it is of: give --{field} as the agent had it")
    try:
        return names.check_name(field, name)
    except InvalidNameError as error:
        raise InspectError(str(error)) from error


def _setting(field: str) -> str:
    # Not by loading all settings: on a technician's computer the others need not be sensible.
    default: str = getattr(AgentSettings(), field)
    return os.environ.get(variable_of("AGENT", field), "").strip() or default


def _since(value: str) -> int:
    try:
        return text.parse_time(value, datetime.now(UTC))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _json(document: msgspec.Struct) -> str:
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def _print(lines: Sequence[str]) -> None:
    for line in lines:
        print(line)
