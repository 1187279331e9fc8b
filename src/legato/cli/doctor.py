"""`legato doctor`: what is here, and whether it works."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from legato import errors

if TYPE_CHECKING:
    from legato.studies.doctor import Check

SIGNS = {"fine": "[green]fine[/green]", "absent": "[dim]absent[/dim]", "broken": "[bold red]broken[/bold red]"}


@dataclass(frozen=True)
class Doctor:
    """Is everything here that legato needs, and does it work?

    Looks at versions, extras, data sets, devices and folders, then makes a tiny comparison from data to page, in a few seconds. What is absent
    is optional; something broken ends the command with status 1 and its remedy.
    """

    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where to look for data first."""
    json: bool = False
    """Print JSON, for programs and bug reports."""

    def run(self) -> None:
        """Print what was found.

        Raises: LegatoError with the remedies where something is broken.
        """
        from rich.console import Console

        from legato.studies import doctor

        with Console(stderr=True).status("looking"):
            checks = list(doctor.examine(str(self.data_dir) if self.data_dir else None))
        broken = [check for check in checks if check.status == "broken"]
        if self.json:
            print(json.dumps({"works": not broken, "checks": [asdict(check) for check in checks]}, indent=1))
        else:
            _print(checks)
        if broken:
            raise errors.LegatoError("\n".join(f"{check.name}: {check.found}. Fix: {check.fix}." for check in broken))


def _print(checks: "Sequence[Check]") -> None:
    """A table for each group; the commands that bring what is absent are said once, below."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    for group in dict.fromkeys(check.group for check in checks):
        table = Table(title=group, title_justify="left", title_style="bold", box=box.SIMPLE, show_header=False, pad_edge=False)  # fmt: skip
        for check in (check for check in checks if check.group == group):
            table.add_row(check.name, SIGNS[check.status], escape(check.found))
        console.print(table)
        fixes = dict.fromkeys(check.fix for check in checks if check.group == group and check.fix)
        for fix in fixes:
            console.print(f"  {fix}", markup=False, soft_wrap=True)
        if fixes:
            console.print()
