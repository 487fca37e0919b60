"""The report of stage 2: one HTML file that holds its pictures, and its tables as Markdown."""
import base64
import html
from pathlib import Path

from ..plots.figures import draw_class_bars, draw_confusion, draw_signals
from ..files import markdown_table, write_text
from ..training.provenance import provenance

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 54rem; margin: 0 auto; padding: 1rem;
  color: #1b2631; background: white }
h1 { font-size: 1.5rem; line-height: 1.25 }
h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #d5d8dc }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: .9rem }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #eaecee;
  vertical-align: top }
td { overflow-wrap: break-word } td + td:last-child { overflow-wrap: anywhere }
figure { margin: 1rem 0; break-inside: avoid }
figure div { overflow-x: auto }
figure img { display: block }
figcaption, .note { color: #566573; font-size: .9rem }
@media print { body { font-size: 11pt; max-width: none; padding: 0 }
  table { display: table } thead { display: table-header-group } tr { break-inside: avoid }
  h2, h2 + p { break-after: avoid }
  figure img { width: auto; max-width: 100%; max-height: 9cm } }
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
    "chance": "accuracy of always naming the class that most of these windows have",
}


def score_table_of(scores):
    """(head, rows): each score's name, value, 95 % interval over subjects, meaning."""
    rows, intervals = [], scores["intervals"]
    for name, meaning in MEANING.items():
        interval = "{:.3f} to {:.3f}".format(*intervals[name]) if name in intervals else ""
        rows.append((name.replace("_", " "), f"{scores[name]:.3f}", interval, meaning))
    return ("score", "value", "95 % interval", ""), rows


def class_table_of(per_class, classes):
    rows = []
    for i, name in enumerate(classes):
        shown = (f"{per_class[score][i]:.3f}" for score in ("precision", "recall", "f1"))
        rows.append((name, *shown, per_class["windows"][i]))
    return ("class", "precision", "recall", "F1", "windows"), rows


def html_table(head, rows):
    def line(cells, tag):
        return "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells)

    top = f"<thead><tr>{line(head, 'th')}</tr></thead>" if any(head) else ""      # on each page
    lines = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table>{top}<tbody>{lines}</tbody></table>"


def figure(svg, caption):
    """An SVG inside the page, as an image: pictures share no ids then."""
    data = base64.b64encode(svg.encode()).decode()
    caption = html.escape(caption)
    return (f'<figure><div><img alt="{caption}" src="data:image/svg+xml;base64,{data}"></div>'
            f"<figcaption>{caption}</figcaption></figure>")


def most_wrong(records, n=6):
    """The worst windows, no two with the same mistake; without probabilities the most frequent.

    The worst is the one whose true class got the least probability.
    """
    wrong = [record for record in records if record["predicted"] != record["label"]]
    mistakes = [(record["label"], record["predicted"]) for record in wrong]

    def rank(record):
        if "probabilities" in record:
            return record["probabilities"][record["label"]]
        return -mistakes.count((record["label"], record["predicted"]))

    found = {}
    for record in sorted(wrong, key=rank):
        found.setdefault((record["label"], record["predicted"]), record)
    return list(found.values())[:n]


def wrong_window(record, data, windows):
    """One of the worst windows as HTML, with its signals."""
    classes = data.dataset.classes
    true, predicted = record["label"], record["predicted"]
    answer = "an answer that names no class" if predicted is None else classes[predicted]
    caption = f"{classes[true]}, taken for {answer}"
    if "probabilities" in record:
        probabilities = record["probabilities"]
        caption += (f" (probability {probabilities[predicted]:.2f}; of the true class "
                    f"{probabilities[true]:.2f})")
    caption += f". Window {record['window']}, subject {record['subject']}."
    window = data.window(windows[record["window"]])
    shown = figure(draw_signals(window, data.dataset), caption)
    if "generated" in record:
        shown += f"<p class=note>It wrote: {html.escape(record['generated'])}</p>"
    return shown


def describe_source(source):
    """A provenance as rows of a table."""
    stage_1 = source.get("stage_1") or {}
    rows = [("command", source.get("command")), ("code", source.get("commit")),
            ("trained in this stage", ", ".join(source.get("trained", []))),
            ("stage 1", stage_1.get("checkpoint")),
            ("scores of stage 1", ", ".join(f"{name.replace('_', ' ')} {value:.4g}"
                                            for name, value in stage_1.get("scores", {}).items())),
            ("versions", source.get("versions")), ("device", source.get("device")),
            ("processes", source.get("processes"))]
    return [(what, value) for what, value in rows if value]


def describe_run(recipe, progress, device, data, split):
    """Settings, data, and how to reproduce the scores: {heading: [(what, value), ...]}."""
    dataset, meta = data.dataset, data.meta
    subjects = [subject for subject, counts in meta["subjects"].items() if counts["split"] == split]
    settings = [(name.replace("_", " "), value) for name, value in progress["settings"].items()
                if value is not None]
    channels = [channel.titled for channel in dataset.channels]
    windows = [f"{name} {count}" for name, count in meta["har_windows"].items()]
    sections = {
        "Settings": [
            ("LLM", recipe.llm or "built-in size, trained from scratch"),
            ("encoder", recipe.encoder or "built-in size, trained from scratch"),
            ("text in the prompt", "+".join(recipe.text) or "none"), ("answer", recipe.answer),
            *([("ablation", recipe.ablation)] if recipe.ablation else []),
            ("trained in either stage", ", ".join(recipe.trained)),
            ("projector", ", ".join(map(str, recipe.projector))), ("scaling", recipe.scaling),
            *settings, ("best step", progress["best_step"])],
        "Data": [
            ("dataset", recipe.dataset), ("source", dataset.source), ("rate", f"{dataset.rate} Hz"),
            ("window", f"{dataset.n_window} samples, {dataset.window / dataset.rate:g} s; "
                       f"stride {dataset.stride:g}"),
            ("channels", ", ".join(channels)), (f"{split} subjects", ", ".join(subjects)),
            ("windows", ", ".join(windows)), ("the test is of", dataset.held_out)],
        "The training": describe_source(progress.get("provenance", {})),
        "This evaluation": describe_source(provenance(device)),
    }
    return {heading: rows for heading, rows in sections.items() if rows}


def write_report(path, records, scores, split, run, data):
    """Writes PATH.html and PATH.md.

    records: of predict.classify. scores: those of class_scores, and with them the "confusion"
    matrix, the "intervals" of bootstrap_intervals, and how many answers are "unparsable".
    """
    recipe, progress, device = run
    classes = recipe.classes
    n_subjects = len({record["subject"] for record in records})
    people = "unseen people" if data.dataset.split is None else "people who were trained on"
    title = (f"{recipe.dataset}: macro F1 {scores['macro_f1']:.3f} on {len(records)} windows of "
             f"{n_subjects} {people}")
    note = f"Intervals: {n_subjects} subjects drawn with replacement, 2000 times. "
    if data.dataset.split:
        note += f"The test is of {data.dataset.held_out}. "
    if n_subjects < 5:
        note += ("So few people say little about the next one: the interval only shows how these "
                 "differ. ")
    if recipe.answer != "class":
        note += (f"{scores['unparsable']} of {len(records)} answers name no class; they count as "
                 "wrong.")
    sections = describe_run(recipe, progress, device, data, split)
    score_table = score_table_of(scores)
    class_table = class_table_of(scores["per_class"], classes)

    markdown = [f"# {title}", markdown_table(*score_table), note,
                "## Classes", markdown_table(*class_table)]
    for heading, rows in sections.items():
        markdown += [f"## {heading}", markdown_table(("", ""), rows)]
    write_text(Path(f"{path}.md"), "\n\n".join(markdown) + "\n")

    windows = data.records("har", split)
    wrong = "".join(wrong_window(record, data, windows) for record in most_wrong(records))
    confusion_picture = draw_confusion(scores["confusion"], classes)
    class_bars = draw_class_bars(scores["per_class"], classes)
    body = [
        f"<h1>{html.escape(title)}</h1>", html_table(*score_table),
        f"<p class=note>{html.escape(note)}</p>",
        "<h2>Confusion matrix</h2>",
        figure(confusion_picture, "Windows; the colour is the share of the true class"),
        "<h2>Classes</h2>",
        figure(class_bars, "Precision, recall and F1 of each class"),
        html_table(*class_table),
        "<h2>What it got most wrong</h2>",
        "<p class=note>One window of each mistake, the worst first.</p>",
        wrong or "<p>It got none wrong.</p>",
    ]
    for heading, rows in sections.items():
        body += [f"<h2>{heading}</h2>", html_table(("", ""), rows)]
    write_text(Path(f"{path}.html"), (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>{''.join(body)}</body></html>\n"))
