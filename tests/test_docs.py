"""The pages hold together: links lead somewhere, commands can be parsed, every public name is in the reference."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from ivimbayes.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
AHEAD: set[str] = set()


def anchors(text: str) -> set[str]:
    """Anchors of the headings of a page, as repositories and MyST make them."""
    titles = re.findall(r"^#+ +(.+)$", FENCE.sub("", text), re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    return {word.strip().replace(" ", "-") for word in words}


def broken_links(page: Path) -> list[str]:
    found = []
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if not path.exists():
            found.append(f"{page.name}: {target}: no such file")
        elif anchor and anchor not in anchors(path.read_text(encoding="utf-8")):
            found.append(f"{page.name}: {target}: no such heading")
    return found


def commands(text: str) -> list[tuple[str, bool]]:
    """Command lines of ivimbayes, and whether they are whole: those in blocks are, those in a sentence not."""
    lines = [
        (line, True) for _, block in FENCE.findall(text) for line in block.replace("\\\n", "").splitlines()
    ]
    lines += [(" ".join(code.split()), False) for code in CODE.findall(FENCE.sub("", text))]
    found = []
    for line, whole in lines:
        for part in line.split("&&"):
            match = re.match(r"\s*(?:\S*/)?ivimbayes +(?=[a-z-])(.*)", part)
            if match:
                found.append((match[1], whole))
    return found


def all_commands() -> dict[str, Any]:
    """Commands by name, those of a group after its name."""
    found = {}
    for name, command in typer.main.get_command(app).commands.items():
        inner = getattr(command, "commands", {})
        found |= {f"{name} {word}": one for word, one in inner.items()} or {name: command}
    return found


def known_options() -> dict[str, set[str]]:
    """Options of each command."""
    return {
        name: {option for p in command.params for option in (*p.opts, *p.secondary_opts)} | {"--help"}
        for name, command in all_commands().items()
    }


def bad_commands(text: str) -> list[str]:
    every, known, found = all_commands(), known_options(), []
    for line, whole in commands(text):
        name, *words = shlex.split(line, comments=True)
        if words and f"{name} {words[0]}" in known:
            name = f"{name} {words.pop(0)}"
        if name not in known:
            found += [] if name in AHEAD else [f"{line}: no command {name}"]
            continue
        wrong = [w for w in words if w.startswith("--") and w.split("=")[0] not in known[name]]
        found += [f"{line}: no option {word}" for word in wrong]
        if whole and not wrong:
            try:
                every[name].make_context(name, words)
            except Exception as error:  # of click, or of the copy of it that typer brings
                found.append(f"{line}: {error}")
    return found


def bad_options(text: str) -> list[str]:
    """Options that are named alone, and that neither a command has nor a benchmark."""
    known = set().union(*known_options().values())
    scripts = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests" / "benchmarks").glob("*.py"))
    named = {
        code.split()[0].split("=")[0] for code in CODE.findall(FENCE.sub("", text)) if code.startswith("--")
    }
    return sorted(o for o in named if not set(o.split("/")) <= known and f'"{o}"' not in scripts)


def public_names() -> set[str]:
    stub = (ROOT / "ivimbayes" / "__init__.pyi").read_text(encoding="utf-8")
    return set(re.findall(r" as (\w+)$", stub, re.MULTILINE))


def reference_names(text: str) -> set[str]:
    """Names on the reference page: entries of its lists, and data described by hand."""
    blocks = [block for kind, block in FENCE.findall(text) if kind == "{eval-rst}"]
    return {n for block in blocks for n in re.findall(r"^(?:   |\.\. py:data:: )(\w+)$", block, re.MULTILINE)}


def unknown_names(text: str) -> list[str]:
    """Names of ivimbayes that a page uses as ib.name, and that are not public."""
    used = set(re.findall(r"\bib\.([A-Za-z]\w*)", text))
    return sorted(used - public_names() - AHEAD)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, with `code`\n[a](gone.md) [b](page.md#a-title-with-code) [c](#gone) [d](https://gone.example)\n"
        "```\n[e](not-a-link.md)\n```\n"
    )
    assert broken_links(page) == ["page.md: gone.md: no such file", "page.md: #gone: no such heading"]


def test_links_of_the_site_stay_on_it() -> None:
    """A page that is not on the site would be offered there as a download."""
    for page in PAGES[1:]:
        assert not re.search(r"\]\(\.\./[^)]*\.md", page.read_text(encoding="utf-8")), page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_can_be_parsed(page: Path) -> None:
    assert bad_commands(page.read_text(encoding="utf-8")) == []


def test_commands_are_seen() -> None:
    seen = {line.split()[0] for page in PAGES for line, whole in commands(page.read_text("utf-8")) if whole}
    assert {
        "fit",
        "prior",
        "demo",
        "map",
        "ls",
        "summary",
        "compare",
        "volume",
        "tissues",
        "protocol",
    } <= seen


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```\nivimbayes fit dwi.nii.gz --roi labels.nii.gz --out x\n```", "no option --roi"),
        ("```\nivimbayes fit dwi.nii.gz --rois labels.nii.gz\n```", "Missing parameter: out"),
        ("```\nivimbayes fit dwi.nii.gz --out x --draws many\n```", "many"),
        ("```\n. activate && bin/ivimbayes fitt dwi.nii.gz\n```", "no command fitt"),
        ("```\nivimbayes protocol design --n 10 --snrr 30\n```", "no option --snrr"),
        ("```\nivimbayes protocol plan --n 10\n```", "no command protocol"),
        ("see `ivimbayes summary results --sensitive`", "no option --sensitive"),
    ],
)
def test_a_bad_command_is_found(text: str, fault: str) -> None:
    (found,) = bad_commands(text)
    assert fault in found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_exist(page: Path) -> None:
    assert bad_options(page.read_text(encoding="utf-8")) == []


def test_a_bad_option_is_found() -> None:
    assert bad_options("`--noise rician`, `--rivals` of a benchmark, `--nois rician`") == ["--nois"]


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert public_names() - reference_names(page) == set(), "add them to docs/api.md"


def test_a_missing_name_is_found() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert public_names() - reference_names(page.replace("   tissue_prior\n", "")) == {"tissue_prior"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_use_public_names(page: Path) -> None:
    assert unknown_names(page.read_text(encoding="utf-8")) == []


def test_an_unknown_name_is_found() -> None:
    assert unknown_names("`ib.fit(scan)`, `ib.fitt(scan)`") == ["fitt"]


def test_the_example_is_that_of_the_readme() -> None:
    """The abdominal scan is shown on two pages, from one run."""
    shown = [block for _, block in FENCE.findall((ROOT / "docs" / "start.md").read_text(encoding="utf-8"))]
    readme = [block for _, block in FENCE.findall(PAGES[0].read_text(encoding="utf-8"))]
    (example,) = [block for block in readme if block.startswith("region ")]
    assert example in shown
