"""The report of stage 2: one HTML page that holds its tables and pictures."""
import base64
from html import escape

from ..files import write_text
from ..plots.figures import draw_confusion, draw_signals
from ..training.provenance import provenance
from .class_scores import MEANING, most_wrong

SHOWN = ("dataset", "llm", "encoder", "text", "answer", "ablation", "trained")      # of the recipe
PAGE = """<!doctype html><html lang=en><head><meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 54rem; margin: auto; padding: 1rem }}
h1 {{ font-size: 1.5rem; line-height: 1.25 }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem }}
table, figure {{ display: block; overflow-x: auto; margin: 1rem 0 }}
table {{ border-collapse: collapse; font-size: .9rem }} figcaption, p {{ color: #566573 }}
th, td {{ text-align: left; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid #eaecee;
  vertical-align: top; font-weight: normal; min-width: 3.5rem; overflow-wrap: anywhere }}
</style></head><body><h1>{title}</h1>{body}</body></html>
"""


def picture(png, caption):
    """A PNG inside the page, at half of its width in pixels, so that it is sharp on any screen."""
    width = int.from_bytes(png[16:20], "big") // 2                # from the header of the PNG
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return (f"<figure><img alt='' width={width} src='{source}'>"
            f"<figcaption>{escape(caption)}</figcaption></figure>")


def wrong_window(record, data):
    """The signals of a wrongly classified window, and the model's answer."""
    classes = data.dataset.classes
    label = record["label"]
    predicted = record["predicted"]
    answer = "no class" if predicted is None else classes[predicted]
    caption = (f"Window {record['window']}, subject {record['subject']}: {classes[label]}, "
               f"predicted as {answer}. {record.get('generated', '')}")
    return picture(draw_signals(data.window(record), data.dataset), caption)


def write_report(path, records, scores, model, data):
    """Writes the page. scores: the content of evaluation_SPLIT.json. model: an interface.Model."""
    import pandas as pd
    title = f"{data.name}: macro F1 {scores['macro_f1']:.3f} on {len(records)} windows"
    note = (f"Scored on {data.dataset.held_out}. Answers that name no class, which are wrong: "
            f"{scores['unparsable']}.")
    table = pd.DataFrame(
        {"score": scores, "": MEANING}, index=list(MEANING))
    people = pd.DataFrame.from_dict(scores["people"], orient="index")
    classes = data.dataset.classes
    per_class = scores["per_class"]
    four = "{:.4f}".format
    options = ("display.max_colwidth", None, "display.float_format", four,
               "display.html.border", 0)
    with pd.option_context(*options):                             # to_html escapes what it writes
        body = [table.to_html(na_rep=""), f"<p>{escape(note)}</p>",
                picture(draw_confusion(scores["confusion"], classes), "Confusion matrix"),
                pd.DataFrame(per_class, index=classes).to_html(),
                "<h2>Each person: F1 is averaged over the classes that this person has</h2>",
                people.to_html(),
                "<h2>What it got most wrong, one window of each mistake</h2>"]
        body += [wrong_window(record, data) for record in most_wrong(records)]
        recipe = {name: getattr(model.recipe, name) for name in SHOWN}
        origins = {"Model": recipe,
                   "Settings": model.progress["settings"],
                   "Training": model.progress["provenance"],
                   "Evaluation": provenance(model.processes.device)}
        for heading, values in origins.items():
            rows = pd.json_normalize(values, sep=" ").T.dropna()
            body += [f"<h2>{heading}</h2>", rows.to_html(header=False)]
    write_text(
        path, PAGE.format(title=escape(title), body="\n".join(body)))
