"""What keeps the house in order: who imports whom, how long lines are, and that the READMEs tell the truth."""
import ast
import re

import pytest
from helpers import ROOT, launch

PACKAGE = ROOT / "sensorllm_min"
WINGS = ("data", "training", "evaluation")
SOURCES = [*ROOT.glob("*.py"), *PACKAGE.rglob("*.py")]
HEAVY = ("pandas", "scipy", "matplotlib")


def name_of(path):
    """A module's name below the package: "llama", "data.texts"; a script's: "train_align"."""
    base = PACKAGE if path.is_relative_to(PACKAGE) else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts)


def imports_of(path):
    """The modules of the package that a file imports, wherever in the file."""
    inside = path.parent.relative_to(PACKAGE).parts if path.is_relative_to(PACKAGE) else ()
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = (node.module or "").split(".")
        if node.level:
            base = [*inside[:len(inside) - node.level + 1], *module]
        elif module[0] == "sensorllm_min":
            base = module[1:]
        else:
            continue
        found.add(".".join(base))
    return found


GRAPH = {name_of(path): imports_of(path) for path in SOURCES}


def test_the_root_of_the_package_imports_from_no_wing():
    """The front door, `load`, leads into one, but only when it is called."""
    for path in set(PACKAGE.glob("*.py")) - {PACKAGE / "__init__.py"}:
        wings = {module for module in imports_of(path) if module.split(".")[0] in WINGS}
        assert not wings, f"{path.name} imports {wings}"
    at_once = [node.module for node in ast.parse((PACKAGE / "__init__.py").read_text()).body if isinstance(node, ast.ImportFrom)]
    assert at_once and not any(module.split(".")[0] in WINGS for module in at_once)


def test_wings_import_from_earlier_wings_alone():
    """data, then training, then evaluation: a reader of one needs none that comes later."""
    for name, imported in GRAPH.items():
        wing = name.split(".")[0]
        if wing in WINGS:
            later = WINGS[WINGS.index(wing) + 1:]
            assert not {module for module in imported if module.split(".")[0] in later}, name


def test_no_module_imports_itself_in_a_circle():
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name):], name])
        if name in done or name not in GRAPH:
            return
        path.append(name)
        for module in GRAPH[name]:
            visit(module)
        done.add(path.pop())

    for name in GRAPH:
        visit(name)
    assert len(GRAPH) > 30 and GRAPH["llama"] >= {"layers"}       # the imports were seen


def test_nothing_imports_a_script():
    scripts = {path.stem for path in ROOT.glob("*.py")}
    for path in SOURCES:
        assert not re.search(rf"^\s*(from|import) ({'|'.join(scripts)})\b", path.read_text(), re.MULTILINE), path


def test_the_runtime_imports_no_reference_package():
    forbidden = r"^\s*(from|import) (transformers|chronos|sklearn|sacrebleu|rouge_score|pickle)\b"
    for path in SOURCES:
        assert not re.search(forbidden, path.read_text(), re.MULTILINE), path


def test_importing_loads_no_heavy_package():
    """pandas, scipy and matplotlib take a second each; they are imported where they are used."""
    code = f"import train_align, train_har, evaluate, data_prep, sys; print([name for name in {HEAVY} if name in sys.modules])"
    assert launch("-c", code, cwd=ROOT).strip() == "[]"


def functions():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield path, node


def test_no_function_takes_more_than_six_parameters():
    """What travels together is a dataclass. Triton's kernels are left out: they take bare arrays."""
    for path, node in functions():
        names = [arg.arg for arg in node.args.posonlyargs + node.args.args + node.args.kwonlyargs]
        names = [name for name in names if name not in ("self", "cls")]
        if path.name != "triton_attention.py":
            allowed = 8 if node.name in ("attend", "reference_attention") else 6      # attention's own terms
            assert len(names) <= allowed, f"{path.name}:{node.lineno} {node.name}: {names}"


def test_no_module_of_the_package_reads_an_argparse_namespace():
    """`args` ends in the script; the package takes settings."""
    for path in PACKAGE.rglob("*.py"):
        assert not re.search(r"\bargs\.[a-z]", path.read_text(encoding="utf-8")), path


def test_no_line_is_longer_than_100_columns():
    long = [f"{path.relative_to(ROOT)}:{number}" for path in SOURCES
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1) if len(line) > 100]
    assert long == []


@pytest.mark.parametrize("readme", ["README.md", "sensorllm_min/README.md"])
def test_the_sizes_in_the_readmes_are_true_within_a_tenth(readme):
    folder = (ROOT / readme).parent
    rows = re.findall(r"^\| .*?(\[.*\)) \| ([\d, ]+) \|", (ROOT / readme).read_text(), re.MULTILINE)
    assert len(rows) >= 8
    for links, sizes in rows:
        files = re.findall(r"\((\S+\.py)\)", links)
        for file, size in zip(files, sizes.split(", "), strict=True):
            lines = len((folder / file).read_text(encoding="utf-8").splitlines())
            assert abs(int(size) - lines) <= lines / 10, f"{file}: {lines} lines, {readme} says {size}"


@pytest.mark.parametrize("folder", ["", *WINGS])
def test_every_file_is_in_the_readme_of_its_folder(folder):
    readme = (PACKAGE / folder / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"\((\w+\.py)\)", readme))
    assert listed == {path.name for path in (PACKAGE / folder).glob("*.py")} - {"__init__.py"}


def test_every_link_in_a_readme_leads_somewhere():
    for readme in [*ROOT.glob("*.md"), *PACKAGE.rglob("*.md"), *(ROOT / "tests").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", readme.read_text(encoding="utf-8")):
            assert "://" in target or (readme.parent / target).exists(), f"{readme}: {target}"


def test_the_table_of_claims_names_tests_that_exist():
    tests = ROOT / "tests"
    claims = re.findall(r"([\w/]+\.py)::(\w+)", (tests / "README.md").read_text(encoding="utf-8"))
    assert len(claims) > 60
    missing = [(path, name) for path, name in claims
               if f"def {name}(" not in (tests / path).read_text(encoding="utf-8")]
    assert missing == []
