"""A drawing shows the same cells as text and as HTML, and nothing in it commands a terminal or a notebook."""

import re
from html import unescape

import pytest

from treespec.tables import Drawing, Drawn, Table, as_html, as_text, figures, in_short

BAD = "\x1b[2J\x9b31m\x07\u202e\u2028\ufeff\ud800"
SEEN = r"\x1b[2J\x9b31m\x07\u202e\u2028\ufeff\ud800"
MARKUP = "<script>alert('&')</script>\"[bold]"
SUMS = Table("sums", ("", "a", "b"), [("x", "1", "20"), ("yy", "3", "4"), ("all", "4", "24")], totals=1)


def test_text_is_aligned_with_a_line_above_the_totals() -> None:
    text = as_text(["before", "again", SUMS, figures("", [("name", "value"), ("n", "v")]), "after"])
    assert text.splitlines() == [
        "before",
        "again",
        "",
        "sums",
        "     a   b",
        "---  -  --",
        "x    1  20",
        "yy   3   4",
        "---  -  --",
        "all  4  24",
        "",
        "name  value",
        "n     v",
        "",
        "after",
    ]


def test_html_has_a_body_for_the_totals_and_no_head_without_heads() -> None:
    html = as_html([SUMS])
    assert re.findall("<tbody>|<thead>|<caption>sums</caption>", html) == ["<caption>sums</caption>", "<thead>", "<tbody>", "<tbody>"]
    assert re.findall(r'<td style="text-align: (\w+)">(?:x|20)</td>', html) == ["left", "right"]
    assert not re.search("<thead>|<caption>", as_html([figures("", [("a", "b")])]))


@pytest.mark.parametrize(
    "part", [BAD, figures(BAD, []), figures("", [(BAD, "")]), Table("", (BAD,), []), Table("", ("",), [], left_out=[BAD])]
)
def test_control_characters_are_written_out_everywhere(part: Table | str) -> None:
    for shown in (as_text([part]), as_html([part])):
        assert SEEN in shown
        assert shown.replace("\n", "").isprintable()
        shown.encode()


def test_markup_is_escaped_everywhere() -> None:
    html = as_html([MARKUP, f"{MARKUP}\n{MARKUP}", Table(MARKUP, (MARKUP, "a"), [(MARKUP, "1")], left_out=[MARKUP])])
    assert set(re.findall(r"</?(\w+)", html)) == {"p", "pre", "table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert unescape(html).count(MARKUP) == 7
    assert as_text([MARKUP]) == MARKUP


def test_a_cell_stays_on_its_line_and_a_picture_keeps_its_lines() -> None:
    assert as_text([figures("a\nb", [("c\td", "e\nf")])]).splitlines() == [r"a\nb", r"c\td  e\nf"]
    assert as_text(["root\n└── 0"]) == "root\n└── 0"
    assert as_html(["root\n└── 0", "a line"]) == "<pre>root\n└── 0</pre>\n<p>a line</p>"


def test_nothing_to_show_is_shown_as_nothing() -> None:
    assert (as_text([]), as_html([])) == ("", "")
    assert as_text([Table("title", ("a", "b"), [])]).splitlines() == ["title", "a  b"]
    assert as_text([figures("title", [])]) == "title"


class Thing(Drawn):
    """A result that is drawn."""

    def drawing(self) -> Drawing:
        return Drawing([SUMS, "a & b"])

    def __repr__(self) -> str:
        return in_short(self, name="x\x1b", figure=1.23456, unknown=None)


def test_results_and_their_drawings_print_alike() -> None:
    for shown in (Thing(), Thing().drawing()):
        assert str(shown) == as_text([SUMS, "a & b"])
        assert shown._repr_html_() == as_html([SUMS, "a & b"])
    assert repr(Thing()) == r"Thing(name='x\x1b', figure=1.235)"
