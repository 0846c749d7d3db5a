"""The text of the example's window: what stands where, and what a click finds."""

from __future__ import annotations

import pytest
from alternatives import Alternatives
from messages import Choice, Part
from PySide6.QtCore import QPoint, Qt
from PySide6.QtGui import QTextCursor
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QLabel
from transcript import Transcript

pytestmark = pytest.mark.desktop

LIKELY = ((" a", 0.6), (" b", 0.3))


def choice(text: str, probability: float = 0.6) -> tuple[Choice, ...]:
    return (Choice(text, probability, LIKELY),)


@pytest.fixture
def transcript(app: QApplication) -> Transcript:
    """One with a prompt and three tokens, the first beyond UTF-16's first plane."""
    found = Transcript()
    found.resize(500, 200)
    found.show()
    found.write_prompt("Once")
    found.write([Part(text, choice(text)) for text in ("😀", " upon", " a")])
    return found


def middle_of(transcript: Transcript, position: int) -> QPoint:
    """Inside the character at that position."""
    cursor = QTextCursor(transcript.document())
    cursor.setPosition(position)
    left = transcript.cursorRect(cursor)
    cursor.setPosition(position + 1)
    return QPoint((left.x() + transcript.cursorRect(cursor).x()) // 2, left.center().y())


def test_a_click_finds_the_token_under_it(transcript: Transcript) -> None:
    found: list[object] = []
    transcript.clicked.connect(found.append)
    upon = transcript.text.index("up") + 1  # the face takes two places of the document
    for position in (upon, 1):
        point = middle_of(transcript, position)
        QTest.mouseClick(transcript.viewport(), Qt.MouseButton.LeftButton, pos=point)
    passage = transcript.passage_at(middle_of(transcript, upon))
    assert passage is not None and passage.choices == choice(" upon")
    assert found == [passage, None]
    assert transcript.passage_at(QPoint(480, 190)) is None


def test_wiping_forgets_what_could_be_clicked(transcript: Transcript) -> None:
    transcript.mark([(0, 2)])
    transcript.wipe()
    assert (transcript.text, transcript.end, transcript.extraSelections()) == ("", 0, [])
    transcript.write_prompt("Once upon a time")
    assert transcript.passage_at(middle_of(transcript, 7)) is None


def test_the_view_follows_the_text_unless_it_was_scrolled_back(transcript: Transcript) -> None:
    bar = transcript.verticalScrollBar()
    for _ in range(60):
        transcript.write([Part("more\n", ())])
    assert bar.value() == bar.maximum() > 0
    bar.setValue(0)
    transcript.write([Part("more\n", ())])
    assert bar.value() == 0


def test_the_token_of_the_text_is_among_its_alternatives(app: QApplication) -> None:
    panel = Alternatives()
    panel.show_choice(choice(" z", 0.0004)[0])
    assert panel.bars.rows == [*LIKELY, (" z", 0.0004)]
    assert panel.bars.accessibleDescription() == "␣a 60.0 %, ␣b 30.0 %, ␣z < 0.1 %"
    panel.show_choice(choice(" a")[0])
    assert panel.bars.rows == list(LIKELY)
    panel.leave()
    assert panel.isHidden()


def test_a_token_is_shown_as_it_is_and_takes_no_more_room_than_there_is(app: QApplication) -> None:
    panel = Alternatives()
    panel.show_choice(choice("<h1>" + "W" * 200)[0])
    title = panel.findChildren(QLabel)[0]
    assert title.text().startswith("<h1>W") and title.textFormat() is Qt.TextFormat.PlainText
    assert panel.minimumSizeHint().width() <= 360


def test_a_carriage_return_moves_no_word(transcript: Transcript) -> None:
    transcript.wipe()
    transcript.write([Part(text, choice(text)) for text in ("a\r\n", "b", "c", "\r", "\n", "d")])
    for word in "abcd":
        passage = transcript.passage_at(middle_of(transcript, transcript.text.index(word)))
        assert passage is not None and word in passage.choices[0].text
