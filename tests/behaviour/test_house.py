"""What keeps the house in order: its budget, who imports whom, and that the READMEs are true."""
import ast
import io
import re
import sys
import tokenize
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import ROOT

import train_align
from sensorllm_min.training.run import Run

PACKAGE = ROOT / "sensorllm_min"
WINGS = ("data", "plots", "training", "evaluation")
SOURCES = sorted([*ROOT.glob("*.py"), *PACKAGE.rglob("*.py")])
TESTS = sorted((ROOT / "tests").rglob("*.py"))
READMES = [ROOT / "README.md", ROOT / "tests/README.md", *PACKAGE.rglob("README.md")]


# ---- the budget ----

# What the project may grow to before something else has to go.
MOST = {"lines": 8000, "nodes": 45000, "nodes a code line": 7.2, "options": 55, "columns": 100,
        "lines of tests": 9870, "words in READMEs": 7000}


def count_nodes(text):
    """Nodes of Python's syntax tree, without Load and Store."""
    return sum(not isinstance(node, (ast.Load, ast.Store)) for node in ast.walk(ast.parse(text)))


def count_code_lines(text):
    """Lines that hold more than white space, a comment or a docstring."""
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def count_options(text):
    """Command-line options: calls of cli.option, and of argparse but for the one in cli.py."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    names = [getattr(call.func, "id", getattr(call.func, "attr", "")) for call in calls]
    return names.count("option") + names.count("add_argument")


def test_the_project_stays_inside_its_budget():
    sources = [path.read_text(encoding="utf-8") for path in SOURCES]
    nodes = sum(map(count_nodes, sources))
    found = {
        "lines": sum(text.count("\n") for text in sources),
        "nodes": nodes,
        "nodes a code line": round(nodes / sum(map(count_code_lines, sources)), 2),
        "options": sum(map(count_options, sources)) - 1,
        "columns": max(len(line) for text in sources for line in text.splitlines()),
        "lines of tests": sum(path.read_text(encoding="utf-8").count("\n") for path in TESTS),
        "words in READMEs": sum(len(path.read_text(encoding="utf-8").split()) for path in READMES)}
    print(found)
    assert found["lines"] > 5000 and found["options"] > 20        # they were counted
    assert {name: value for name, value in found.items() if value > MOST[name]} == {}


def test_what_counts_is_what_is_code():
    text = '"""A docstring."""\n# a comment\n\nx = f(1,\n      2)\ntext = """one\ntwo"""\n'
    assert count_code_lines(text) == 4
    assert count_nodes("x = 1") == 4                              # Module, Assign, Name, Constant
    assert count_options("a = option(1, 'x')\nparser.add_argument('--y')\n") == 2


# ---- who imports whom ----

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


def test_wings_import_from_earlier_wings_only():
    """data, then plots, training, evaluation: a reader of one needs none that comes later."""
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


def test_the_runtime_imports_what_requirements_name_and_no_reference_package():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    runtime = re.findall(r"^([\w-]+)", text.split("# to test")[0], re.MULTILINE)
    allowed = {name.replace("-", "_") for name in runtime} | {"sensorllm_min"}
    for path in SOURCES:
        found = re.findall(r"^\s*(?:from|import) ([a-z_0-9]\w*)", path.read_text(), re.MULTILINE)
        outside = {name for name in found if not is_standard(name)} - allowed
        assert not outside, f"{path}: {outside}"
        assert "pickle" not in found, path


def is_standard(name):
    return name in sys.stdlib_module_names


# ---- how functions look ----

def test_no_function_takes_more_than_six_parameters():
    """What travels together is a dataclass. Triton's kernels are left out: they take bare arrays."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef) or path.name == "triton_attention.py":
                continue
            names = [arg.arg for arg in node.args.posonlyargs + node.args.args + node.args.kwonlyargs]
            names = [name for name in names if name not in ("self", "cls")]
            allowed = 8 if node.name in ("attend", "reference_attention") else 6      # attention's own terms
            assert len(names) <= allowed, f"{path.name}:{node.lineno} {node.name}: {names}"


# ---- the READMEs ----

@pytest.mark.parametrize("folder", ["", *WINGS])
def test_every_file_is_in_the_readme_of_its_folder(folder):
    readme = (PACKAGE / folder / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"\((\w+\.py)\)", readme))
    assert listed == {path.name for path in (PACKAGE / folder).glob("*.py")} - {"__init__.py"}


def test_every_link_in_a_readme_leads_somewhere():
    for readme in READMES:
        for target in re.findall(r"\]\(([^)#]+)\)", readme.read_text(encoding="utf-8")):
            assert "://" in target or (readme.parent / target).exists(), f"{readme}: {target}"


def test_the_table_of_claims_names_tests_that_exist():
    tests = ROOT / "tests"
    claims = re.findall(r"([\w/]+\.py)::(\w+)", (tests / "README.md").read_text(encoding="utf-8"))
    assert len(claims) >= 45
    missing = [(path, name) for path, name in claims
               if f"def {name}(" not in (tests / path).read_text(encoding="utf-8")]
    assert missing == []



# ---- a step that a reader can follow ----

def test_a_step_of_stage_1_runs_at_most_50_functions_of_the_project(demo, tmp_path, monkeypatch):
    """One turn of the loop in train_align.py: the next batch is prepared, this one is trained on and logged."""
    seen, logged = set(), []

    def profile(frame, event, arg):
        code = frame.f_code
        ours = code.co_filename.startswith(str(ROOT)) and "/tests/" not in code.co_filename
        if event == "call" and ours and not code.co_name.startswith("<"):
            seen.add((code.co_filename, code.co_qualname))

    def submit(pool, prepare, *args):
        def profiled():
            sys.setprofile(profile if len(logged) == 2 else None)
            try:
                return prepare(*args)
            finally:
                sys.setprofile(None)
        return real_submit(pool, profiled)

    def log_step(run, *args):
        real_log_step(run, *args)
        logged.append(args)
        sys.setprofile(profile if len(logged) == 2 else None)

    real_submit, real_log_step = ThreadPoolExecutor.submit, Run.log_step
    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit)
    monkeypatch.setattr(Run, "log_step", log_step)
    options = ["--data", demo, "--out", tmp_path, "--train-limit", 48, "--epochs", 1, "--eval-every", 99,
               "--eval-limit", 2, "--test-limit", 1, "--max-new-tokens", 2]
    monkeypatch.setattr(sys, "argv", ["train_align.py", *map(str, options)])
    try:
        train_align.main()
    finally:
        sys.setprofile(None)
    print(len(seen), *sorted(name for _, name in seen))
    assert len(logged) > 3 and 30 < len(seen) <= 50
