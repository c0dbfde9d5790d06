"""docs/deploy.md against the files it is about."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/deploy.md").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def table(heading: str) -> set[str]:
    """Return the names in the first column of the table that has this head."""
    rows = TEXT.partition(f"| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row.split("|")[1])}


def test_every_build_argument_is_explained() -> None:
    assert table("Build argument") == set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))


def test_every_variable_of_the_main_process_is_explained() -> None:
    used = set(re.findall(r"ENV_(\w+)\)s", (ROOT / "supervisord.conf").read_text()))
    assert table("Variable of the image") == used


def test_the_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / "docs" / link).resolve().exists(), link


def test_the_figures_of_the_supervisor_are_the_ones_in_force() -> None:
    config = (ROOT / "supervisord.conf").read_text()
    retries = int(re.findall(r"startretries = (\d+)", config)[0])
    assert f"after {retries + 1} crashes in a row" in TEXT
    young = re.findall(r"startsecs = (\d+)", config)[0]
    assert f"none later than {young} s after its start" in TEXT


def test_the_scrape_configuration_is_yaml() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert yaml.safe_load(blocks[0])["scrape_configs"][0]["job_name"] == "picoclaw"


def test_every_volume_of_the_image_is_explained() -> None:
    volumes = json.loads(re.findall(r"^VOLUME (.*)$", DOCKERFILE, re.MULTILINE)[0])
    assert {volume for volume in volumes if f"| `{volume}` |" not in TEXT} == set()


def test_the_proxies_let_through_whatever_the_host_takes() -> None:
    assert re.findall(r"client_max_body_size (\w+);", TEXT) == ["0"]
    chart = yaml.safe_load((ROOT / "deploy/helm/picoclaw/values.yaml").read_text())
    assert chart["ingress"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"] == "0"
