"""The software bill of materials of a wheel: CycloneDX JSON of all that it brings. `make dist` writes it into dist/."""

import json
from datetime import UTC, datetime
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house.supply.closure import GROUPS, closure, pinned, pins, wanted_by
from tests.house.supply.licences import licence

ROOT_REF = "msdeform"


def purl(name: str, version: str) -> str:
    return f"pkg:pypi/{name}@{version}"


def component(name: str, version: str, groups: list[str]) -> dict[str, Any]:
    """One package: its licence, and which extras bring it."""
    return {
        "type": "library",
        "bom-ref": name,
        "name": name,
        "version": version,
        # required is what `pip install msdeform` brings, optional what an extra does
        "scope": "required" if groups == ["base"] else "optional",
        "licenses": [{"expression": licence(name)}],
        "purl": purl(name, version),
        "properties": [{"name": "msdeform:needed-by", "value": ", ".join(groups)}],
    }


def bill(version: str, sha256: str, epoch: int) -> str:
    """The bill of the wheel of this version and hash, made at this time; the packages' versions are those pinned."""
    newest = pins("constraints.txt")
    names = wanted_by()
    requirements = [Requirement(line) for lines in GROUPS.values() for line in lines]
    direct = {canonicalize_name(requirement.name) for requirement in requirements}
    root = {
        "type": "library",
        "bom-ref": ROOT_REF,
        "name": "msdeform",
        "version": version,
        "licenses": [{"expression": "Apache-2.0"}],
        "purl": purl("msdeform", version),
        "hashes": [{"alg": "SHA-256", "content": sha256}],
    }
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"timestamp": datetime.fromtimestamp(epoch, UTC).isoformat(), "component": root},
        "components": [component(name, str(pinned(newest[name])), groups) for name, groups in names.items()],
        "dependencies": [
            {"ref": ROOT_REF, "dependsOn": sorted(direct & names.keys())},
            *({"ref": name, "dependsOn": sorted(asks)} for name, asks in sorted(closure(requirements).items())),
        ],
    }
    return json.dumps(document, indent=1) + "\n"
