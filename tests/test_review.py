"""`--phase=review`: the list, the page in a browser, and the loop."""

from __future__ import annotations

import csv
import io
import json
import pathlib
import re

import pytest

from flowers17_tfdata.phases.review import cards
from flowers17_tfdata.training.inference import Inference
from tests import browser, fakes
from tests.test_folder_source import write_picture

NAMES = ("blue & <b>", "green", "red")
PER_CLASS = 30
WRONG = {
    f"{name}/{k:03d}.png": NAMES[(NAMES.index(name) + 1) % 3]
    for name, k in (("green", 3), ("red", 5))
}


@pytest.fixture
def photos(tmp_path) -> pathlib.Path:
    """Three colours; two images are in the folder of another."""
    root = tmp_path / "photos"
    for label, name in enumerate(NAMES):
        (root / name).mkdir(parents=True)
        for k in range(PER_CLASS):
            file = f"{name}/{k:03d}.png"
            shown = NAMES.index(WRONG.get(file, name))
            pixels = fakes.make_smooth_image(48, 48, 100 * label + k) // 2
            pixels[..., shown] += 110
            write_picture(root / file, 0, pixels)
    return root


@pytest.fixture
def default_flags(tiny_flags, photos, weights, tmp_path) -> list[str]:
    return [
        *(f for f in tiny_flags if not f.startswith("--archive")),
        f"--data_dir={tmp_path / 'data'}",
        f"--dataset=folder:{photos}",
        f"--weights={weights}",
        "--strategy=default",
        "--finetune_epochs=0",
    ]


def _read(path: pathlib.Path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_loop(run, tmp_path, monkeypatch):
    code, _, err = run("old")
    assert code == 0, err
    computed = []
    images = Inference.outputs

    def outputs(self, *arguments):
        computed.append(arguments)
        return images(self, *arguments)

    code, out, _ = run("old", "--phase=review")
    assert code == 0
    assert re.search(r"review: about \d+ of 90 labels \(", out)
    review = _read(tmp_path / "old" / "review.json")
    ranked = review["images"]
    assert len(ranked) == review["num_images"] == 90
    assert {row["split"] for row in ranked} == {"train", "validation", "test"}
    assert {row["file"] for row in ranked[:6]} >= set(WRONG)
    for row in ranked[:6]:
        if row["file"] in WRONG:
            assert row["suggested_class"] == WRONG[row["file"]]
            assert 0 <= row["probability"] < row["suggested_probability"] <= 1
        assert len(row["neighbours"]) == 3
    own = [row["probability"] for row in ranked]
    assert own == sorted(own)
    assert review["num_shown"] == cards._FEWEST
    page = (tmp_path / "old" / "review.html").read_text(encoding="utf-8")
    assert f"flowers17-tfdata \\\n    --extends={tmp_path / 'old'}" in page
    fixes = tmp_path / "fixes.csv"
    lines = ["file,class,new_class"]
    lines += [
        f"{row['file']},{row['class']},{WRONG.get(row['file'], row['class'])}"
        for row in ranked[:20]
    ]
    fixes.write_text("\n".join(lines))
    monkeypatch.setattr(Inference, "outputs", outputs)
    old, fix = f"--extends={tmp_path / 'old'}", f"--corrections={fixes}"
    code, out, err = run("new", old, fix)
    assert code == 0, err
    assert "corrections of fixes.csv: 2 labels changed, 0 images dropped" in out
    assert "90 images keep their splits; 0 added" in out
    assert "images known from" in out
    audit = _read(tmp_path / "new" / "audit.json")
    assert audit["corrections"]["num_relabelled"] == 2
    assert audit["corrections"]["num_kept"] == 18
    page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert "2 labels corrected, 0 images dropped" in page
    # The next review asks for others.
    code, _, err = run("new", "--phase=review", old, fix)
    assert code == 0, err
    again = _read(tmp_path / "new" / "review.json")
    assert again["num_reviewed"] == 20
    assert not set(WRONG) & {row["file"] for row in again["images"][:2]}
    both = f"--compare={tmp_path / 'new'}", f"--baseline={tmp_path / 'old'}"
    code, out, _ = run("compared", "--phase=compare", *both)
    assert code == 0
    tested = {
        row["id"]
        for row in audit["corrections"]["rows"]
        if row["id"] in WRONG and row["split"] == "test"
    }
    assert ("left out" in out) == bool(tested)
    # Other corrections make it another data set.
    fixes.write_text("\n".join(lines[:2]))
    code, _, err = run("new", old, fix)
    assert code == 1
    assert "is not what --workdir" in err
    # Later phases read the run's own copy.
    fixes.unlink()
    code, _, err = run("new", "--phase=evaluate")
    assert code == 0, err


_PROBE = """<script>
localStorage.clear();
addEventListener("load", () => setTimeout(async () => {
  const cards = [...document.querySelectorAll(".suspect")];
  let blob = null, name = null;
  URL.createObjectURL = (made) => { blob = made; return "#"; };
  HTMLAnchorElement.prototype.click = function () { name = this.download; };
  const at = () => cards.indexOf(document.activeElement.closest(".suspect"));
  const press = (key) => document.activeElement.dispatchEvent(
    new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  const moved = [];
  for (const key of ["ArrowRight", "n", "p", "r", "k", "d", "x"]) {
    press(key);
    moved.push(at());
  }
  const pressed = (k) => [...cards[k].querySelectorAll("[aria-pressed=true]")]
    .map((button) => button.dataset.do).join();
  const keyed = [0, 1, 2].map(pressed);
  press("p"); press("u");
  const undone = pressed(2);
  cards[2].querySelector("[data-do=drop]").click();
  const select = cards[4].querySelector("select");
  select.value = select.options[1].value;
  select.dispatchEvent(new Event("change"));
  cards[3].querySelector("[data-do=keep]").click();
  cards[3].querySelector("[data-do=keep]").click();
  document.getElementById("save").click();
  const focusable = [...cards[0].querySelectorAll("button, select")];
  parent.postMessage({
    problems, moved, keyed, undone, name, csv: await blob.text(),
    counter: document.getElementById("counter").textContent,
    kept: Object.keys(JSON.parse(localStorage.getItem(localStorage.key(0)))),
    scroll_width: document.documentElement.scrollWidth,
    unnamed: focusable.filter((element) => !(element.textContent.trim()
      || element.getAttribute("aria-label"))).length,
    pictures: cards.filter((card) => card.querySelector(".photo")
      .naturalWidth > 0).length,
    small: focusable.filter((e) => e.offsetHeight < 24).length,
    requests: performance.getEntriesByType("resource")
      .map((entry) => entry.name).filter((name) => !name.startsWith("data:")),
  }, "*");
}, 300));
</script>"""


@pytest.mark.slow
def test_the_page_in_a_browser(run, tmp_path):
    code, _, err = run("work", "--phase=review")
    assert code == 0, err
    page = tmp_path / "work" / "review.html"
    # There is nothing to extend.
    assert "and the flags of your choice" in page.read_text(encoding="utf-8")
    shown = _read(tmp_path / "work" / "review.json")["images"][:20]
    for width in (390, 1280):
        seen = browser.look(page, _PROBE, tmp_path, width)
        assert seen["problems"] == seen["requests"] == []
        assert seen["scroll_width"] <= width
        assert seen["unnamed"] == seen["small"] == 0
        assert seen["pictures"] == 20
        # Deciding by a key goes on to the next image.
        assert seen["moved"] == [0, 1, 0, 1, 2, 3, 3]
        assert seen["keyed"] == ["relabel", "keep", "drop"]
        assert seen["undone"] == ""
        assert seen["counter"] == (
            "4 of 20 decided: 1 kept, 2 relabelled, 1 dropped"
        )
        assert len(seen["kept"]) == 4
        assert seen["name"] == "corrections.csv"
        rows = list(csv.DictReader(io.StringIO(seen["csv"].lstrip("\ufeff"))))
        other = {*NAMES} - {shown[4]["class"], shown[4]["suggested_class"]}
        new = [
            shown[0]["suggested_class"],
            shown[1]["class"],
            "(drop)",
            *other,
        ]
        assert rows == [
            {"file": row["file"], "class": row["class"], "new_class": name}
            for row, name in zip([*shown[:3], shown[4]], new, strict=True)
        ]
    # What it saves is what `--corrections` reads.
    (tmp_path / "saved.csv").write_text(seen["csv"], encoding="utf-8")
    saved = f"--corrections={tmp_path / 'saved.csv'}"
    code, out, err = run("next", "--phase=review", saved)
    assert code == 0, err
    assert "2 labels changed, 1 image dropped, 1 label kept" in out
    again = _read(tmp_path / "next" / "review.json")
    assert again["num_reviewed"] == 3
    assert again["num_images"] == 3 * PER_CLASS - 1
    # The next table contains this one.
    (tmp_path / "second").mkdir()
    seen = browser.look(
        tmp_path / "next" / "review.html", _PROBE, tmp_path / "second", 1280
    )
    second = list(csv.DictReader(io.StringIO(seen["csv"].lstrip("\ufeff"))))
    assert sorted(second[:4], key=str) == sorted(rows, key=str)
    assert len(second) == 8


def test_the_page_shows_a_tenth_within_bounds():
    rows = [{"reviewed": k in (0, 2)} for k in range(10_000)]
    assert len(cards.choose(rows)) == 150
    assert cards.choose(rows)[0] is rows[1]
    assert len(cards.choose(rows[:400])) == 40
    assert len(cards.choose(rows[:30])) == 20
    assert len(cards.choose(rows[:10])) == 8
