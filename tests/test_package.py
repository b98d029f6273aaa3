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


def loaded_by(*statements):
    """Top-level packages that a fresh interpreter has after each of the statements."""
    report = "import sys\nprint(*{name.partition('.')[0] for name in sys.modules})\n"
    script = "".join(f"{statement}\n{report}" for statement in statements)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    return [set(line.split()) for line in run.stdout.splitlines()]


def test_importing_loads_nothing_that_is_optional():
    by_optax, by_both, by_all = loaded_by("import optax", "import optax_clr", "import matplotlib")
    optional = {"flax", "matplotlib", "tqdm", "sklearn", "chex", "pytest"}
    assert not by_both & (optional - by_optax)
    assert "matplotlib" in by_all  # or the test could not fail


def test_importing_starts_no_device():
    environment = {**os.environ, "JAX_PLATFORMS": "no_such_platform"}
    script = "import optax_clr, jax; print('imported'); jax.devices()"
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=environment, capture_output=True, check=False, text=True,
    )  # fmt: skip
    assert run.stdout.strip() == "imported"
    assert run.returncode != 0  # or the test could not fail


def imported(folder, statement):
    """What a fresh interpreter prints that finds only the copy of the package in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    run = subprocess.run(
        [sys.executable, "-c", statement],
        cwd=folder, env=environment, capture_output=True, check=True, text=True,
    )  # fmt: skip
    return run.stdout.strip()


# What forgets the package, so that one interpreter can import it again.
FORGET = (
    "for name in [n for n in sys.modules if n.startswith('optax_clr')]: del sys.modules[name]\n"
)


def test_a_copy_without_metadata_can_be_imported(tmp_path):
    shutil.copytree(SOURCE, tmp_path / "optax_clr")
    hide = "find = m.distribution\n"
    hide += "def distribution(name):\n"
    hide += "    if name == 'optax-clr': raise m.PackageNotFoundError(name)\n"
    hide += "    return find(name)\n"
    hide += "m.distribution = distribution\n"
    report = "import optax_clr; print(optax_clr.__version__, optax_clr.__file__)\n"
    begin = "import importlib.metadata as m, sys\n"
    with_it, without = imported(tmp_path, begin + report + FORGET + hide + report).splitlines()
    assert with_it.split()[0] == importlib.metadata.version("optax-clr")
    version, file = without.split()
    assert file.startswith(str(tmp_path))
    assert version == "0+unknown"


def test_importing_leaves_the_garbage_collector_as_it_was(tmp_path):
    shutil.copytree(SOURCE, tmp_path / "optax_clr")
    report = "import optax_clr\nprint(gc.isenabled())\n"
    states = f"gc.enable()\n{report}{FORGET}gc.disable()\n{report}{FORGET}gc.enable()\n"
    broken = tmp_path / "optax_clr/plotting.py"
    failing = f"open({str(broken)!r}, 'w').write('1 / 0  # of another length')\n"
    failing += "try: import optax_clr\nexcept ZeroDivisionError: print(gc.isenabled())"
    found = imported(tmp_path, f"import gc, sys\n{states}{failing}")
    assert found.split() == ["True", "False", "True"]


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
