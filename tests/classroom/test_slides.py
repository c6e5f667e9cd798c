"""`ddpm-edu slides`: every picture of a notebook on some slide, one file, nothing from outside."""

import html
import json
import re

import pytest
from notebook_page import all_notebooks

from ddpm_edu.classroom import slides
from ddpm_edu.cli import main
from ddpm_edu.errors import OptionError

NOTEBOOKS = pytest.mark.parametrize("path", all_notebooks(), ids=lambda path: path.stem)


def cells_of(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@NOTEBOOKS
def test_every_picture_is_on_one_slide_and_no_solution_on_any(path):
    cells = cells_of(path)
    outputs = [o for c in cells for o in c.get("outputs", [])]
    shown = "".join("".join(o.get("data", {}).get("text/html", "")) for o in outputs)
    deck = [slide for column in slides.deck(cells) for slide in column]
    text = "".join(deck)
    assert text.count("data:image/") == shown.count("data:image/") >= 5
    heads = re.findall(r"^## ", "\n".join("".join(c["source"]) for c in cells), re.M)
    assert len(list(slides.deck(cells))) >= len(heads) - 2  # glossary and references are left out
    for cell in cells:
        if "solution" in cell["metadata"].get("tags", []):
            assert html.escape("".join(cell["source"])) not in text
    assert deck[0].startswith("<h1>") and "[map]" not in text


def test_a_short_text_shares_its_slide_and_an_answer_waits_for_a_click():
    figure = '<figure><img alt="" src="x"><figcaption></figcaption></figure>'
    asked = f"<p><b>Why?</b></p><details><summary>answer</summary>Because.{figure}</details>"
    output = lambda data: {"output_type": "display_data", "data": {"text/html": [data]}}
    text = lambda words: {"cell_type": "markdown", "source": [words], "metadata": {}}
    code = lambda *found: {
        "cell_type": "code",
        "source": ["draw()"],
        "metadata": {},
        "outputs": [output(data) for data in found],
    }
    cells = [text("# 99 Title\n\nWords."), text("## One\n\nShort $x$."), code(figure, figure)]
    cells += [text("## Two\n\n" + "long " * 80), code(asked)]
    title, one, two = slides.deck(cells)
    assert len(one) == 2 and "Short $x$." in one[0] and figure in one[0] and "draw()" in one[0]
    assert "<details>" not in one[1], "the code is shown once"
    assert figure not in two[0] and '<div class="answer fragment">Because.' in two[1]


def test_the_command_writes_one_file(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "library"
    for name, parts in slides.LIBRARIES.items():
        for part in parts:
            (folder / part).parent.mkdir(parents=True, exist_ok=True)
            (folder / part).write_text(f"/* {name} </script> */")
    monkeypatch.setattr(slides.npm, "package", lambda name: folder)
    assert main(["slides", "03", "--out", str(tmp_path / "s.html")]) == 0
    text = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert re.search(
        r"s\.html: \d\d slides, from notebooks/03_unet\.ipynb", capsys.readouterr().out
    )
    assert text.count("</script>") == 3 and not re.search(
        r'(?:src|href)="https?:[^"]*\.(?:js|css)', text
    )


def test_it_refuses_before_it_writes(tmp_path, monkeypatch, capsys):
    assert main(["slides", "77", "--out", str(tmp_path / "s.html")]) == 2
    assert "77: no such notebook" in capsys.readouterr().err
    assert main(["slides", "/none.ipynb", "--out", str(tmp_path / "s.html")]) == 2
    assert "/none.ipynb: no such notebook" in capsys.readouterr().err
    for text in (
        "<html>",
        "[]",
        '{"cells": [1]}',
        '{"cells": [{"source": 5, "cell_type": "code"}]}',
    ):
        (tmp_path / "x.ipynb").write_text(text)
        with pytest.raises(OptionError, match="no notebook that can be read"):
            slides.write(tmp_path / "x.ipynb", tmp_path / "s.html")
    (tmp_path / "x.ipynb").unlink()
    monkeypatch.setattr(slides.npm, "package", lambda name: None)
    with pytest.raises(OptionError, match="reveal.js"):
        slides.write(all_notebooks()[0], tmp_path / "s.html")
    assert list(tmp_path.iterdir()) == []
