"""migrate_records.py FILE...: give records of the escape by decoys their new name.

Until version 0.1 `ATEsc` was the escape by decoys. It is `DecoyEscape` now, and `ATEsc` is the
paper's scheme. Numbers stay. A record that was changed says so in its field `migrated`.
Records that are up to date are left alone, and so is a variant that is gone ("by image").
"""

import json
import sys
from pathlib import Path
from typing import Any

LINE_UP = {
    "generators": "generators",
    "probe": "steps",
    "per_class": "per_class",
    "factor": "ratio_limit",
    "lr": "lr",
    "latent_dim": "latent_dim",
    "width": "width",
}
DECOYS = {
    "batch_size": "batch_size",
    "join": "max_trap_share",
    "apart": "separation_weight",
    "hunt": "belief_weight",
}


def decoy_config(old: dict[str, Any]) -> dict[str, Any]:
    """DecoyConfig with the settings of the line-up apart."""
    line_up = {new: old[name] for name, new in LINE_UP.items()}
    return {
        "type": "DecoyConfig",
        "line_up": {"type": "LineUpConfig", **line_up, "bn_weight": 1.0},
        **{new: old[name] for name, new in DECOYS.items()},
    }


def migrated(part: Any) -> Any:
    """A part of a configuration, with every escape by decoys in it renamed."""
    if isinstance(part, list):
        return [migrated(item) for item in part]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Preset" and "forget" in part.get("atesc", {}):
        part = {("decoy" if name == "atesc" else name): value for name, value in part.items()}
    if "forget" in part and "decoy" in part:
        part = {("weight" if name == "forget" else name): value for name, value in part.items()}
        part["type"] = "DecoyEscape" if part["type"] == "ATEsc" else part["type"]
        if "probe" in part["decoy"]:
            part["decoy"] = decoy_config(part["decoy"])
    return {name: migrated(value) for name, value in part.items()}


def migrate(record: dict[str, Any]) -> dict[str, Any]:
    """The record by its new name; the same one if it is none of the escape by decoys."""
    config = migrated(record["config"])
    bench = record["experiment"] == "bench" and "ATEsc" in record["method"]
    if "migrated" in record or (config == record["config"] and not bench):
        return record
    names = {name: record[name] for name in ("method", "variant", "case") if name in record}
    for name, value in names.items():
        record[name] = "decoy" if value == "atesc" else value.replace("ATEsc", "DecoyEscape")
    return {**record, "config": config, "migrated": {"from": names}}


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        records = [migrate(record) for record in records if record["method"] != "by image"]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        print(f"{path}: {sum('migrated' in record for record in records)} of {len(records)}")


if __name__ == "__main__":
    main(sys.argv[1:])
