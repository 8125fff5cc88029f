"""The software bill of materials of a wheel: CycloneDX JSON of all that it brings. `make dist` writes it into dist/."""

import json
from datetime import UTC, datetime
from importlib.metadata import distribution
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house.supply.closure import GROUPS, closure, wanted_by
from tests.house.supply.licences import licence

ROOT_REF = "msdeform"


def purl(name: str, version: str) -> str:
    return f"pkg:pypi/{name}@{version}"


def component(name: str, groups: list[str]) -> dict[str, Any]:
    """One package: its version here, its licence, and which extras bring it."""
    version = distribution(name).version
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
    """The bill of the wheel of this version and hash, made at this time; the same text for the same input."""
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
        "components": [component(name, groups) for name, groups in names.items()],
        "dependencies": [
            {"ref": ROOT_REF, "dependsOn": sorted(direct & names.keys())},
            *({"ref": name, "dependsOn": sorted(asks)} for name, asks in sorted(closure(requirements).items())),
        ],
    }
    return json.dumps(document, indent=1) + "\n"
