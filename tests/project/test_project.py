"""The project's own files: they parse, agree with each other, and name things that exist."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from dejavubench import __version__
from helpers.paths import CONTRIB, DOCS, PACKAGE, RESULTS, ROOT, SCRIPTS

TEXTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted(DOCS.rglob("*.md")),
    *sorted(RESULTS.glob("*/README.md")),
    CONTRIB / "README.md",
]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def parse_yaml(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / name).read_text()))


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_citation_names_this_version_its_licence_and_the_paper() -> None:
    citation = parse_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert citation["title"]
    assert citation["version"] == __version__
    assert citation["license"] == pyproject()["project"]["license"]
    assert [author["name"] for author in citation["authors"]] == ["the dejavubench developers"]
    paper = citation["preferred-citation"]
    assert paper["authors"][0]["family-names"] == "Strati"
    assert paper["year"] == 2024
    assert paper["url"] == "https://arxiv.org/abs/2403.01876"


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    for section in ("1. Definitions.", "9. Accepting Warranty", "END OF TERMS AND CONDITIONS"):
        assert section in text


def test_the_package_ships_its_types_and_kernels() -> None:
    data = pyproject()["tool"]["setuptools"]["package-data"]
    assert data["dejavubench"] == ["py.typed"]
    assert (PACKAGE / "py.typed").exists()
    for package, patterns in data.items():
        folder = ROOT.joinpath(*package.split("."))
        assert all(list(folder.glob(pattern)) for pattern in patterns), package


def normalize_name(requirement: str) -> str:
    """Return the name of a package in one spelling, without its version and extras."""
    return re.split(r"[^\w.-]", requirement.strip())[0].lower().replace("_", "-")


def read_pinned_names() -> set[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {normalize_name(line.split("==")[0]) for line in lines if "==" in line}


def test_every_dependency_that_pyproject_names_is_pinned() -> None:
    project = pyproject()["project"]
    named = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    assert {normalize_name(requirement) for requirement in named} <= read_pinned_names()


def test_what_the_dependencies_need_in_turn_is_pinned() -> None:
    project = pyproject()["project"]
    extras = project["optional-dependencies"]
    waiting = [*project["dependencies"], *extras["mpich"], *extras["dev"]]
    installed: set[str] = set()
    while waiting:
        name = normalize_name(waiting.pop())
        if name in installed:
            continue
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # needed on another platform, or another MPI is in use
        installed.add(name)
        waiting += [need for need in needs if "extra ==" not in need]
    # The CUDA build of torch pins NVIDIA's own libraries and triton.
    of_cuda = {name for name in installed if name.startswith(("nvidia-", "cuda-", "triton"))}
    assert installed - of_cuda <= read_pinned_names()


def test_the_workflow_and_the_hooks_run_what_make_test_runs() -> None:
    workflow = parse_yaml(".github/workflows/ci.yml")
    jobs = {
        name: [step.get("run") for step in job["steps"]] for name, job in workflow["jobs"].items()
    }
    assert "make lint" in jobs["lint"]
    assert ".ci/run" in jobs["ci"]
    assert "make coverage" in jobs["coverage"]
    assert pyproject()["tool"]["coverage"]["report"]["fail_under"] > 0  # else it could not fail
    (repository,) = parse_yaml(".pre-commit-config.yaml")["repos"]
    on_commit = [hook for hook in repository["hooks"] if "stages" not in hook]
    entries = {" ".join(hook["entry"].split()[:2]) for hook in on_commit}
    recipe = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    assert entries == {
        "ruff check",
        "ruff format",
        "mypy",
        "codespell",
        "python scripts/check_conflicts.py",
    }
    assert [entry for entry in entries if f"$(BIN)/{entry}" not in recipe] == []


def test_a_release_needs_all_checks_and_the_tests_on_a_gpu() -> None:
    jobs = parse_yaml(".github/workflows/release.yml")["jobs"]
    assert jobs["release"]["needs"] == ["ci", "gpu"]
    assert ".ci/run" in [step.get("run") for step in jobs["ci"]["steps"]]
    gpu_workflow = jobs["gpu"]["uses"].removeprefix("./")
    steps = parse_yaml(gpu_workflow)["jobs"]["gpu"]["steps"]
    assert "make test-gpu" in [step.get("run") for step in steps]


def test_the_workflow_runs_every_python_that_the_package_names() -> None:
    named = [classifier.rpartition(" ")[2] for classifier in pyproject()["project"]["classifiers"]]
    versions = [version for version in named if re.fullmatch(r"3\.\d+", version)]
    workflow = parse_yaml(".github/workflows/ci.yml")
    assert workflow["jobs"]["ci"]["strategy"]["matrix"]["python"] == versions


@pytest.mark.parametrize("mark", ["<" * 7 + " HEAD", ">" * 7 + " topic"])
def test_a_merge_that_was_not_finished_is_refused(mark: str, tmp_path: Path) -> None:
    script = str(SCRIPTS / "check_conflicts.py")
    (tmp_path / "page.md").write_text("Heading\n=======\n")
    assert subprocess.run([sys.executable, script, str(tmp_path)]).returncode == 0
    (tmp_path / "folder").mkdir()
    unmerged = tmp_path / "folder" / "module.py"
    unmerged.write_text(f"a = 1\n{mark}\n")
    completed = subprocess.run(
        [sys.executable, script, str(tmp_path)], capture_output=True, text=True
    )
    assert completed.returncode == 1
    assert completed.stderr == f"conflict markers:\n{unmerged}:2\n"


WHOLE_MESSAGE = "Say one thing\n\nAnd why."
GPU_CODE = "dejavubench/dejavulib/levels.py"
SHOWN_DIFF = f"# {'-' * 24} >8 {'-' * 24}\n# Do not edit.\ndiff --git\n+{'x' * 101}"
"""What ``git commit --verbose`` shows below a message."""


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        pytest.param(WHOLE_MESSAGE, None, id="subject and reason"),
        pytest.param(f"{WHOLE_MESSAGE}\n# a line of git's own", None, id="line of git's own"),
        pytest.param("Merge branch 'topic'", None, id="merge without a reason"),
        pytest.param("Say one thing", "has no body", id="no reason"),
        pytest.param("Say one thing\n# git's own", "has no body", id="no reason but git's lines"),
        pytest.param(f"Say one thing\n{SHOWN_DIFF}", "has no body", id="no reason but a diff"),
        pytest.param("WIP", "is no subject", id="unfinished"),
        pytest.param(f"fixup! {WHOLE_MESSAGE}", "is no subject", id="fix of another commit"),
        pytest.param("x" * 72 + "\n\nAnd why.", None, id="subject of 72 characters"),
        pytest.param("x" * 73 + "\n\nAnd why.", "73 characters", id="subject of 73 characters"),
        pytest.param("Say one thing\nand another", "must be blank", id="no line between"),
        pytest.param(f"Say one thing\n\n{'x' * 100}", None, id="line of 100 characters"),
        pytest.param(
            f"{WHOLE_MESSAGE}\n{'x' * 101}", "101 characters", id="line of 101 characters"
        ),
        pytest.param(f"{WHOLE_MESSAGE}\nhttps://{'x' * 101}", None, id="long address"),
        pytest.param(f"{WHOLE_MESSAGE}\n{SHOWN_DIFF}", None, id="long line of a diff"),
        pytest.param("# nothing else", "no subject", id="no subject"),
    ],
)
def test_a_commit_message_is_refused_with_its_fault(
    message: str, complaint: str | None, tmp_path: Path
) -> None:
    completed = commit_with(message, "README.md", tmp_path)
    assert completed.returncode == (complaint is not None)
    assert (complaint or "") in completed.stderr


def commit_with(
    message: str, path: str, repository: Path, moved_from: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the hook on a commit of one path, with the message, in a repository of its own."""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run([*git, "init", "--quiet"], cwd=repository, check=True)
    staged = repository / path
    staged.parent.mkdir(parents=True, exist_ok=True)
    if moved_from is None:
        staged.write_text("text\n")
    else:
        earlier = repository / moved_from
        earlier.parent.mkdir(parents=True, exist_ok=True)
        earlier.write_text("text\n")
        subprocess.run([*git, "add", "."], cwd=repository, check=True)
        subprocess.run([*git, "commit", "--quiet", "-m", "Start"], cwd=repository, check=True)
        earlier.rename(staged)
    subprocess.run([*git, "add", "--all"], cwd=repository, check=True)
    file = repository / "message"
    file.write_text(message)
    return subprocess.run(
        [sys.executable, str(SCRIPTS / "check_subject.py"), str(file)],
        capture_output=True,
        text=True,
        cwd=repository,
    )


@pytest.mark.parametrize(
    ("path", "is_asked"),
    [
        ("dejavubench/dejavulib/kernels/regions.cu", True),
        ("dejavubench/bench/engine/clock.py", True),
        ("dejavubench/machine/gpu.py", True),
        ("dejavubench/models/gpt.py", True),
        ("dejavubench/models/backends/cpu/linear.py", False),
        ("dejavubench/models/hub/specs.py", False),
        ("dejavubench/analysis/columns.py", False),
        ("docs/guides/gpu.md", False),
        ("tests/bench/test_gpu_faults.py", False),
    ],
)
def test_a_commit_of_code_for_gpus_says_what_was_tested_on_one(
    path: str, is_asked: bool, tmp_path: Path
) -> None:
    assert (ROOT / path).exists()
    completed = commit_with(WHOLE_MESSAGE, path, tmp_path)
    assert completed.returncode == is_asked
    assert (f"{path} holds code for GPUs" in completed.stderr) == is_asked


@pytest.mark.parametrize(
    ("trailer", "is_accepted"),
    [
        ("GPU-tested: one H200: tests/dejavulib,\n312 passed.", True),
        ("GPU-tested: not run, because names alone change", True),
        ("Fixes: #3\nGPU-tested: two H200", True),
        ("GPU-tested: one H200\n# a line of git's own", True),
        ("GPU-tested: one H200\n\nAnother paragraph.", False),
        ("GPU-tested: no", False),
        ("GPU-tested: not run", False),
        ("GPU-tested: not needed, as names alone change", False),
        ("GPU-tested: none", False),
        ("GPU-tested:", False),
        ("Not GPU-tested: no time", False),
    ],
)
def test_word_of_tests_on_a_gpu_stands_last_and_says_something(
    trailer: str, is_accepted: bool, tmp_path: Path
) -> None:
    completed = commit_with(f"{WHOLE_MESSAGE}\n\n{trailer}\n", GPU_CODE, tmp_path)
    assert completed.returncode == (not is_accepted)


def test_code_that_moves_out_of_a_folder_for_gpus_is_asked_about(tmp_path: Path) -> None:
    completed = commit_with(WHOLE_MESSAGE, "dejavubench/levels.py", tmp_path, moved_from=GPU_CODE)
    assert completed.returncode == 1
    assert f"{GPU_CODE} holds code for GPUs" in completed.stderr


def test_a_merge_is_not_asked_what_was_tested_on_a_gpu(tmp_path: Path) -> None:
    assert commit_with("Merge branch 'topic'", GPU_CODE, tmp_path).returncode == 0


def test_the_folders_with_code_for_gpus_exist_and_the_rule_names_them() -> None:
    script = runpy.run_path(str(SCRIPTS / "check_subject.py"))
    rule = (ROOT / "CONTRIBUTING.md").read_text().partition("`GPU-tested:`")[2].partition("\n- ")[0]
    folders = [*script["GPU_FOLDERS"], *script["CPU_FOLDERS"]]
    assert len(folders) > 6
    for folder in folders:
        assert (ROOT / folder).is_dir(), folder
        assert f"`{folder.removeprefix('dejavubench/').rstrip('/')}`" in rule


@pytest.mark.parametrize("name", [".ci/run", "scripts/slurm/fig25.sbatch"])
def test_shell_scripts_parse(name: str) -> None:
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    subprocess.run(["bash", "-n", str(ROOT / name)], check=True)


def test_the_container_copies_what_is_there() -> None:
    lines = (ROOT / "Containerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert copied
    assert [name for name in copied if not (ROOT / name).exists()] == []


def make_anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    slugs = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
        slugs.add(plain.strip().replace(" ", "-"))
    return slugs


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(path: Path) -> None:
    broken_links = []
    for target in LINK.findall(path.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        page = (path.parent / name).resolve() if name else path
        if not page.exists() or (anchor and anchor not in make_anchors(page.read_text())):
            broken_links.append(target)
    assert broken_links == []


def find_prose(text: str) -> list[tuple[int, str]]:
    """Return the numbered lines that can be wrapped: no code, table, picture or long address."""
    numbered_lines = []
    in_code = False
    for number, line in enumerate(text.splitlines(), 1):
        in_code ^= line.lstrip().startswith("```")
        if not in_code and not line.startswith(("|", "![", "```")) and "://" not in line:
            numbered_lines.append((number, line))
    return numbered_lines


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_is_no_wider_than_code(path: Path) -> None:
    most_columns = pyproject()["tool"]["ruff"]["line-length"]
    wide_lines = [
        f"{number}: {line}"
        for number, line in find_prose(path.read_text())
        if len(line) > most_columns
    ]
    assert wide_lines == []


PATH_IN_TEXT = re.compile(r"`([\w./-]+\.(?:py|md|toml|sbatch)|[\w./-]+/)`")


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/ARCHITECTURE.md", "docs/METHOD.md"])
def test_files_that_a_text_names_exist(name: str) -> None:
    named = PATH_IN_TEXT.findall((ROOT / name).read_text())
    homes = [ROOT, PACKAGE, *(PACKAGE / package for package in ("dejavulib", "bench", "analysis"))]
    homes.append(DOCS)
    assert [path for path in named if not any((home / path).exists() for home in homes)] == []


def test_the_guide_names_methods_that_the_protocols_have() -> None:
    """Whoever writes a destination from the guide alone must not meet an AttributeError."""
    library, transports = PACKAGE / "dejavulib", PACKAGE / "transports"
    files = [library / "destinations" / "base.py", library / "receiver.py"]
    files += [library / "destinations" / "registry.py", *transports.glob("*.py")]
    words = set(re.findall(r"\w+", "\n".join(file.read_text() for file in files)))
    text = (DOCS / "guides" / "writing-a-destination.md").read_text()
    called = set(re.findall(r"`(?:\w+\.)?([a-z_]+)\(\)`", text))
    # The first cell of a row names methods or attributes, such as `missing` and `conflict`.
    cells = re.findall(r"^\| ((?:`[a-z_]+`(?:, )?)+) \|", text, re.MULTILINE)
    listed = {name for cell in cells for name in re.findall(r"`([a-z_]+)`", cell)}
    assert "poll" in called
    assert {"flush", "poll_completed", "find_peers", "open_sink"} <= listed
    assert (called | listed) - words == set()
