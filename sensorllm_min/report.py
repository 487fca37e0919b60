"""What an evaluation of stage 2 found, for people: one HTML file that holds its pictures, and a Markdown table."""
import base64
import html
import platform
from importlib.metadata import version
from pathlib import Path

from .config import write_whole
from .picture import draw_class_bars, draw_confusion, draw_signals

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 54rem; margin: 0 auto; padding: 1rem; color: #1b2631; background: white }
h1 { font-size: 1.5rem; line-height: 1.25 } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #d5d8dc }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: .9rem }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #eaecee; vertical-align: top }
td { overflow-wrap: break-word } td + td:last-child { overflow-wrap: anywhere }
figure { margin: 1rem 0; break-inside: avoid } figure img { width: 100%; max-width: 40rem; height: auto }
figcaption, .note { color: #566573; font-size: .9rem }
@media print { body { font-size: 11pt; max-width: none; padding: 0 } table { display: table } tr { break-inside: avoid }
  h2, h2 + p { break-after: avoid } figure img { width: auto; max-width: 100%; max-height: 9cm } }
@media (max-width: 30rem) { table { font-size: .8rem } th, td { padding-right: .5rem } }
"""
MEANING = {
    "accuracy": "share of windows that are right",
    "balanced_accuracy": "recall, averaged over the classes that occur",
    "macro_f1": "F1, averaged over all classes: a rare one counts as much as a common one",
    "micro_f1": "F1 of all windows together",
    "macro_precision": "precision, averaged over all classes",
    "macro_recall": "recall, averaged over all classes",
    "kappa": "Cohen's: agreement beyond that of independent draws",
    "chance": "accuracy of always naming the commonest class",
}


def score_rows(scores, intervals):
    """A row for each score: name, value, 95 % interval over subjects, what it means."""
    return [(name.replace("_", " "), f"{scores[name]:.3f}",
             "{:.3f} to {:.3f}".format(*intervals[name]) if name in intervals else "", meaning)
            for name, meaning in MEANING.items()]


def class_rows(scores, classes):
    per_class = scores["per_class"]
    return [(name, *(f"{per_class[score][i]:.3f}" for score in ("precision", "recall", "f1")), per_class["windows"][i])
            for i, name in enumerate(classes)]


SCORE_HEAD = ("score", "value", "95 % interval", "")
CLASS_HEAD = ("class", "precision", "recall", "F1", "windows")


def markdown_table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def html_table(head, rows):
    def line(cells, tag):
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"
    return f"<table>{line(head, 'th') if any(head) else ''}{''.join(line(row, 'td') for row in rows)}</table>"


def figure(svg, caption):
    """An SVG inside the page: as an image, so that the names in one picture do not meet those of another."""
    data = base64.b64encode(svg.encode()).decode()
    return (f'<figure><img alt="{html.escape(caption)}" src="data:image/svg+xml;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>")


def most_wrong(rows, n=6):
    """The windows it got most wrong, no two with the same mistake: where the true class got the least probability;
    without probabilities, one of each mistake, the commonest first."""
    wrong = [row for row in rows if row["predicted"] != row["label"]]
    mistakes = [(row["label"], row["predicted"]) for row in wrong]
    by = (lambda row: row["probabilities"][row["label"]]) if wrong and "probabilities" in wrong[0] else \
        (lambda row: -mistakes.count((row["label"], row["predicted"])))
    found = {}
    for row in sorted(wrong, key=by):
        found.setdefault((row["label"], row["predicted"]), row)
    return list(found.values())[:n]


def wrong_window(row, data, windows):
    """One of them, with its signals."""
    classes = data.dataset.classes
    answer = "an answer that names no class" if row["predicted"] is None else classes[row["predicted"]]
    caption = f"{classes[row['label']]}, taken for {answer}"
    if "probabilities" in row:
        caption += (f" (probability {row['probabilities'][row['predicted']]:.2f}; of the true one "
                    f"{row['probabilities'][row['label']]:.2f})")
    said = f"<p class=note>It wrote: {html.escape(row['generated'])}</p>" if "generated" in row else ""
    window = data.window(windows[row["window"]])
    return figure(draw_signals(window, data.dataset), f"{caption}. Window {row['window']}, subject {row['subject']}.") + said


def about(recipe, progress, data, split, command):
    """Settings, data card, and how to do it again: {heading: [(what, value), ...]}."""
    dataset, meta = data.dataset, data.meta
    subjects = [subject for subject, counts in meta["subjects"].items() if counts["split"] == split]
    return {
        "Settings": [
            ("LLM", recipe.llm or "built-in size, trained from scratch"),
            ("encoder", recipe.encoder or "built-in size, trained from scratch"),
            ("text in the prompt", "+".join(recipe.text) or "none"), ("answer", recipe.answer),
            *([("control", recipe.control)] if recipe.control else []), ("trained", ", ".join(recipe.trained)),
            ("projector", ", ".join(map(str, recipe.projector))), ("scaling", recipe.scaling),
            *((key.replace("_", " "), value) for key, value in progress["settings"].items() if value is not None),
            ("best step", progress["best_step"])],
        "Data": [
            ("dataset", recipe.dataset), ("source", dataset.source), ("rate", f"{dataset.rate} Hz"),
            ("window", f"{dataset.window} samples, {dataset.window / dataset.rate:g} s; stride {dataset.stride}"),
            ("channels", ", ".join(f"{channel.spoken} ({channel.unit})" for channel in dataset.channels)),
            (f"{split} subjects", ", ".join(subjects)),
            ("windows", ", ".join(f"{split} {count}" for split, count in meta["har_windows"].items()))],
        "How to do it again": [
            ("command", command),
            ("versions", ", ".join([f"Python {platform.python_version()}"] + [f"{package} {version(package)}" for package in
                                                                              ("torch", "numpy", "tokenizers", "pandas")])),
            ("machine", f"{platform.system()} {platform.machine()}")],
    }


def write_report(path, rows, confusion, scores, intervals, recipe, progress, data, split, command):
    """Writes PATH.html and PATH.md. rows: those of evaluation.classify; intervals: of metrics.bootstrap_intervals."""
    classes, n_subjects = recipe.classes, len({row["subject"] for row in rows})
    title = f"{recipe.dataset}: macro F1 {scores['macro_f1']:.3f} on {len(rows)} windows of {n_subjects} unseen people"
    note = (f"Intervals: {n_subjects} subjects drawn with replacement, 2000 times. "
            + ("So few people say little about the next one: the interval only shows how these differ. "
               if n_subjects < 5 else ""))
    unread = sum(row["predicted"] is None for row in rows)
    if recipe.answer != "class":
        note += f"{unread} of {len(rows)} answers name no class; they count as wrong."
    sections = about(recipe, progress, data, split, command)
    tables = {heading: (("", ""), lines) for heading, lines in sections.items()}
    write_whole(Path(f"{path}.md"), "\n\n".join([
        f"# {title}", markdown_table(SCORE_HEAD, score_rows(scores, intervals)), note,
        "## Classes", markdown_table(CLASS_HEAD, class_rows(scores, classes)),
        *(part for heading, table in tables.items() for part in (f"## {heading}", markdown_table(*table)))]) + "\n")
    windows = data.rows("har", split)
    wrong = "".join(wrong_window(row, data, windows) for row in most_wrong(rows)) or "<p>It got none wrong.</p>"
    body = [
        f"<h1>{html.escape(title)}</h1>", html_table(SCORE_HEAD, score_rows(scores, intervals)),
        f"<p class=note>{html.escape(note)}</p>",
        "<h2>What was taken for what</h2>", figure(draw_confusion(confusion, classes), "Windows; the colour is the share of the true class"),
        "<h2>Classes</h2>", figure(draw_class_bars(scores["per_class"], classes), "Precision, recall and F1 of each class"),
        html_table(CLASS_HEAD, class_rows(scores, classes)),
        "<h2>What it got most wrong</h2>", "<p class=note>One window of each mistake, the worst first.</p>", wrong,
        *(part for heading, table in tables.items() for part in (f"<h2>{heading}</h2>", html_table(*table)))]
    write_whole(Path(f"{path}.html"), "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
                '<meta name=viewport content="width=device-width, initial-scale=1">'
                f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>{''.join(body)}</body></html>\n")
