"""The chart by Helm itself: linted, rendered, against the API's schemas and beside the manifest."""

from __future__ import annotations

import base64
import json
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.settings import load
from shared.settings.leaves import leaves
from tests.json_schema import check_kubernetes

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/picoclaw"
HELMS_OWN = {
    "app.kubernetes.io/instance",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "helm.sh/chart",
}
EVERYTHING = {
    "existingSecret": "mine",
    "imagePullSecrets": [{"name": "registry"}],
    "env": {"CONSOLE": True, "MAX_EXECUTION_MS": "840000"},
    "orgFiles": {"CLAUDE.md": 'Be "kind".\nAlways.'},
    "ingress": {"enabled": True, "tlsSecret": "tls"},
    "networkPolicy": {"egress": [{"ports": [{"port": 5432}]}]},
    "podAnnotations": {"example.org/a": "b"},
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "a", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "persistence": {"store": {"storageClass": "fast"}},
}

Item = dict[str, Any]

needs_helm = pytest.mark.skipif(
    find_spec("helm_python") is None, reason="needs Helm's own library (90 MB): make test-helm"
)


def rendered(values: Item | None = None, name: str = "picoclaw") -> dict[str, Item]:
    """Return what Helm would send, by kind and name."""
    with import_module("helm_python").Chart.load(str(CHART)) as chart:
        texts = chart.render(values or {}, name=name, namespace="p")
    texts.pop("picoclaw/templates/NOTES.txt")
    items = [item for text in texts.values() for item in yaml.safe_load_all(text) if item]
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in items}


def without_helm(node: Any) -> Any:
    """Return an object without the labels that are Helm's, as a manifest written by hand has none."""
    if isinstance(node, list):
        return [without_helm(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {key: without_helm(item) for key, item in node.items() if key not in HELMS_OWN}
    if all(key.startswith("checksum/") for key in kept.get("annotations", {"-": 0})):
        kept.pop("annotations", None)
    return kept


def test_the_charts_version_is_the_programs() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]


def test_every_value_has_a_default_and_a_place_in_the_schema() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(values) == set(schema["properties"]) - {"global"}
    for name, value in values.items():
        if "properties" in schema["properties"][name]:
            assert set(value) == set(schema["properties"][name]["properties"]), name


@needs_helm
def test_helms_linter_finds_nothing() -> None:
    found = import_module("helm_python").lint(str(CHART))
    said = [item["error"] for item in found["messages"] if "icon is recommended" not in item["error"]]
    assert (said, found["errors"]) == ([], [])


@needs_helm
@pytest.mark.parametrize("version", ["1.29", "1.37"])
@pytest.mark.parametrize(
    "values", [{}, EVERYTHING, {"tick": {"enabled": False}}], ids=["plain", "all", "no tick"]
)
def test_what_it_renders_follows_the_apis_schema(values: Item, version: str) -> None:
    for item in rendered(values).values():
        check_kubernetes(item, version)


@needs_helm
def test_its_defaults_are_the_manifest() -> None:
    manifest = list(yaml.safe_load_all((ROOT / "deploy/kubernetes/picoclaw.yaml").read_text()))
    written = {f"{item['kind']}/{item['metadata']['name']}": item for item in manifest}
    made = rendered()
    assert set(made) - {"Secret/picoclaw"} == set(written)
    for name in set(written) - {"ConfigMap/picoclaw-org"}:
        assert sorted_env(without_helm(made[name])) == sorted_env(with_defaults(written[name])), name
    config = [json.loads(each["ConfigMap/picoclaw-org"]["data"]["config.json"]) for each in (made, written)]
    assert config[0] == config[1]


def with_defaults(item: Item) -> Item:
    """Write out what the manifest leaves to the API's defaults."""
    if item["kind"] == "Service":
        item["spec"].setdefault("type", "ClusterIP")
    if item["kind"] == "CronJob":
        (container,) = item["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        container.setdefault("imagePullPolicy", "IfNotPresent")
    return item


def sorted_env(item: Item) -> Item:
    for container in item.get("spec", {}).get("template", {}).get("spec", {}).get("containers", []):
        container["env"].sort(key=lambda entry: entry["name"])
    return item


@needs_helm
def test_a_token_is_made_where_none_is_given_and_kept_out_where_a_secret_is_yours() -> None:
    first, second = (base64.b64decode(rendered()["Secret/picoclaw"]["data"]["API_TOKEN"]) for _ in range(2))
    assert len(first) == 48
    assert first != second
    given = rendered({"secrets": {"API_TOKEN": "mine", "ANTHROPIC_API_KEY": "sk"}})["Secret/picoclaw"]["data"]
    assert {name: base64.b64decode(value) for name, value in given.items()} == {
        "API_TOKEN": b"mine",
        "ANTHROPIC_API_KEY": b"sk",
    }
    other = rendered({"existingSecret": "mine"})
    assert not any(name.startswith("Secret/") for name in other)
    (container,) = other["StatefulSet/picoclaw"]["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "mine"}}]


@needs_helm
def test_the_program_takes_its_config_and_its_environment(tmp_path: Path) -> None:
    made = rendered({**EVERYTHING, "config": {"version": 3, "budgets": {"day": {"tokens": 20_000_000}}}})
    config = tmp_path / "config.json"
    config.write_text(made["ConfigMap/picoclaw-org"]["data"]["config.json"])
    (container,) = made["StatefulSet/picoclaw"]["spec"]["template"]["spec"]["containers"]
    environ = {entry["name"]: entry["value"] for entry in container["env"]}
    assert set(environ) <= {name for leaf in leaves() for name in leaf.env}
    settings = load({"HOME": str(tmp_path), "PICOCLAW_CONFIG": str(config), **environ})
    assert settings.budgets.day.tokens == 20_000_000
    assert (settings.console, settings.max_execution_ms) == (True, 840_000)
    assert made["ConfigMap/picoclaw-org"]["data"]["CLAUDE.md"] == 'Be "kind".\nAlways.'


@needs_helm
def test_a_value_that_is_none_of_the_charts_is_refused() -> None:
    helm = import_module("helm_python")
    for wrong in ({"replicas": 3}, {"env": {"PORT": 9000}}, {"tick": {"enabled": "yes"}}):
        with helm.Chart.load(str(CHART)) as chart, pytest.raises(helm.HelmError):
            chart.validate_schema(chart.merge_values(wrong))


@needs_helm
def test_two_releases_in_one_namespace_have_nothing_in_common() -> None:
    one, two = rendered(name="one"), rendered(name="two")
    assert set(one) & set(two) == set()
    selector = one["StatefulSet/one-picoclaw"]["spec"]["selector"]["matchLabels"]
    assert selector["app.kubernetes.io/instance"] == "one"
