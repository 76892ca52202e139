"""A folder belongs to one run: its `config.json` says to which."""

import json
from pathlib import Path
from typing import Any


def check_config(folder: Path, options: dict[str, Any], write: bool = True) -> None:
    """Refuse a folder that holds another run, else write `config.json`, wholly or not at all.

    Of several processes all refuse, so that none waits for another, and one writes.
    """
    file = folder / "config.json"
    if file.exists() and json.loads(file.read_text()) != options:
        raise SystemExit(
            f"{folder} holds another run, {file.read_text()}: give the same options to go on with "
            "it, or another --folder."
        )
    if write:
        folder.mkdir(parents=True, exist_ok=True)
        whole = file.with_suffix(".tmp")
        whole.write_text(json.dumps(options))
        whole.replace(file)
