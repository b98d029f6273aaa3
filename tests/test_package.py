"""The package as a whole: its names, its imports, what importing it loads."""

import ast
import importlib.metadata
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import tomllib

import pytest

import optax_clr

SOURCE = pathlib.Path(optax_clr.__file__).parent
ROOT = pathlib.Path(__file__).parents[1]

# In the order in which the method is read; a module may import only from those before it.
TESTS = runpy.run_path(str(ROOT / "tests/tools/mutation.py"))["tests_of_modules"]()
MODULES = list(TESTS)


def test_the_public_names_are_listed_once_and_completed():
    public = {name for name in vars(optax_clr) if not name.startswith("_")}
    assert public == set(optax_clr.__all__)
    assert len(optax_clr.__all__) == len(public)
    assert dir(optax_clr) == sorted([*public, "__version__"])
    everything = {}
    exec("from optax_clr import *", everything)
    assert everything.keys() - {"__builtins__"} == public


def test_help_names_everything():
    words = set(re.findall(r"\w+", optax_clr.__doc__))
    assert words >= set(optax_clr.__all__)


def test_the_version_stands_in_one_place():
    assert optax_clr.__version__ == importlib.metadata.version("optax-clr")


def test_every_module_has_its_place():
    assert {path.stem for path in SOURCE.glob("*.py")} == {*MODULES, "__init__"}


def test_the_map_names_every_file_of_tests_and_no_other():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    files = {
        path.stem
        for pattern in ("test_*", "fuzz_*")
        for path in (ROOT / "tests").glob(f"{pattern}.py")
    }
    assert set(re.findall(r"`((?:test|fuzz)_\w+)`", page)) == files
    assert all(TESTS.values())


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    imported = set()
    for node in ast.walk(ast.parse((SOURCE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optax_clr"):
            _, _, tail = node.module.partition(".")
            imported |= {tail} if tail else {alias.name for alias in node.names}
    assert imported <= set(MODULES[: MODULES.index(module)])


def loaded_by(statement):
    """Top-level packages that a fresh interpreter has after the statement."""
    report = f"{statement}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", report], capture_output=True, check=True, text=True)
    return set(run.stdout.split())


def test_importing_loads_nothing_that_is_optional():
    optional = {"flax", "matplotlib", "tqdm", "sklearn", "chex", "pytest"}
    assert not loaded_by("import optax_clr") & (optional - loaded_by("import optax"))


def test_the_test_above_can_fail():
    assert "matplotlib" in loaded_by("import optax_clr, matplotlib")


def test_importing_starts_no_device():
    environment = {**os.environ, "JAX_PLATFORMS": "no_such_platform"}
    subprocess.run([sys.executable, "-c", "import optax_clr"], env=environment, check=True)
    started = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=environment, capture_output=True, check=False,
    )  # fmt: skip
    assert started.returncode != 0  # or the test above could not fail


def imported(folder, statement):
    """What a fresh interpreter prints that finds only the copy of the package in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    run = subprocess.run(
        [sys.executable, "-c", statement],
        cwd=folder, env=environment, capture_output=True, check=True, text=True,
    )  # fmt: skip
    return run.stdout.strip()


def test_a_copy_without_metadata_can_be_imported(tmp_path):
    shutil.copytree(SOURCE, tmp_path / "optax_clr")
    hidden = "import importlib.metadata as m; find = m.distribution\n"
    hidden += "def distribution(name):\n"
    hidden += "    if name == 'optax-clr': raise m.PackageNotFoundError(name)\n"
    hidden += "    return find(name)\n"
    hidden += "m.distribution = distribution\n"
    report = "import optax_clr; print(optax_clr.__version__, optax_clr.__file__)"
    version, file = imported(tmp_path, hidden + report).split()
    assert file.startswith(str(tmp_path))
    assert version == "0+unknown"
    assert imported(tmp_path, report).split()[0] == importlib.metadata.version("optax-clr")


def test_importing_leaves_the_garbage_collector_as_it_was(tmp_path):
    shutil.copytree(SOURCE, tmp_path / "optax_clr")
    for state, is_on in (("enable", "True"), ("disable", "False")):
        begin, report = f"import gc; gc.{state}()\n", "print(gc.isenabled())"
        assert imported(tmp_path, f"{begin}import optax_clr\n{report}") == is_on
    (tmp_path / "optax_clr/plotting.py").write_text("1 / 0")
    failing = "try: import optax_clr\nexcept ZeroDivisionError: print(gc.isenabled())"
    assert imported(tmp_path, f"import gc\n{failing}") == "True"


def test_types_are_shipped():
    assert (SOURCE / "py.typed").exists()


def git(folder, *arguments):
    identity = ["-c", "user.name=a test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, check=True)


def release(tag, root):
    return subprocess.run(
        ["bash", root / ".ci/release", tag], capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_only_a_tag_on_main_that_is_the_version_may_be_released(tmp_path):
    for name in (".ci/release", "pyproject.toml", "CITATION.cff", "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    changes = tmp_path / "CHANGELOG.md"
    changes.write_text(changes.read_text().replace(f"## [{version}]", "## [another]"))
    assert "CHANGELOG.md has no section" in release(f"v{version}", tmp_path).stderr

    changes.write_text(f"## [{version}] - 2026-01-01\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message=on main")
    git(tmp_path, "update-ref", "refs/remotes/origin/main", "HEAD")
    assert release(f"v{version}", tmp_path).returncode == 0
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message=beside it")
    assert "not on origin/main" in release(f"v{version}", tmp_path).stderr
    assert "the tag is v9.9.9" in release("v9.9.9", tmp_path).stderr

    citation = tmp_path / "CITATION.cff"
    citation.write_text(citation.read_text().replace(f"version: {version}", "version: 9.9.9"))
    assert "CITATION.cff has version 9.9.9" in release(f"v{version}", tmp_path).stderr


def test_every_stage_of_ci_is_run_and_by_actions_of_fixed_contents():
    stages = re.search(r"^stages=\((.*)\)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)[1]
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    matrix = re.search(r"stage: \[(.*)\]", workflow)[1].split(", ")
    assert {*matrix, "python313"} == {*stages.split()}  # CI has that Python in a job of its own
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        for action in re.findall(r"uses: (.*)", path.read_text()):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", action), action


def test_the_badges_and_the_classifiers_are_what_ci_tests():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    supported = re.findall(r"Python :: ([\d.]+)", " ".join(project["classifiers"]))
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    assert supported == sorted(re.findall(r'python: \[?"(.*?)"', workflow))
    assert project["requires-python"] == f">={supported[0]}"
    readme = (ROOT / "README.md").read_text()
    assert f"[![Python {', '.join(supported)}](" in readme
    assert f"/badge/Python-{'_|_'.join(supported)}-" in readme
    assert f"[![{project['license']}](" in readme
    assert f"/badge/licence-{project['license'].replace('-', '--')}-" in readme
