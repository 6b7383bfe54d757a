from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tristep.english import read_aloud
from tristep.text import spoken_words


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("On Jan. 5, 2019, at 3:45 pm.", "On January fifth, twenty nineteen, at three forty-five p.m."),
        ("due 2024-03-15 at 10:00 a.m. sharp", "due March fifteenth, twenty twenty-four at ten a.m. sharp"),
        ("12/25/2023 and 25/12/2023", "December twenty-fifth, twenty twenty-three and "
         "December twenty-fifth, twenty twenty-three"),
        ("the 5th of May, 9:05, 7:00, 17:30, 8am", "the fifth of May, nine oh five, seven o'clock, seventeen thirty, "
         "eight a.m."),
        ("the 1990s, the '80s, the 1800s", "the nineteen nineties, the eighties, the eighteen hundreds"),
    ],
)  # fmt: skip
def test_dates_and_times_are_read_as_people_say_them(written: str, said: str) -> None:
    assert read_aloud(written) == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("$3.50, $1, £0.01 and €20", "three dollars and fifty cents, one dollar, zero pounds and one penny and "
         "twenty euros"),
        ("$3.5 million or ¥2bn", "three point five million dollars or two billion yen"),
        ("42% at -5°C & 60 mph", "forty-two percent at minus five degrees Celsius and sixty miles per hour"),
        ("1 km, 2 ft, 2.4GHz, 2 lbs. of it", "one kilometer, two feet, two point four gigahertz, two pounds of it"),
        ("3/4 cup, 1 1/2 tsp, 1/2 oz, 24/7", "three quarters cup, one and one half teaspoons, one half ounce, "
         "twenty-four slash seven"),
    ],
)  # fmt: skip
def test_money_and_measures_have_their_units(written: str, said: str) -> None:
    assert read_aloud(written) == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("1,234 and 2.50", "one thousand two hundred and thirty-four and two point five zero"),
        ("in 1985 the 21st of 1005", "in nineteen eighty-five the twenty-first of one thousand and five"),
        ("007, pp. 12-15, No. 7", "zero zero seven, pages twelve to fifteen, number seven"),
        ("call 555-1234", "call five five five, one two three four"),
        ("12345678901234567890", "one two three four five six seven eight nine zero "
         "one two three four five six seven eight nine zero"),
        ("221B and MP3s", "two hundred and twenty-one B and MP three s"),
        ("3½ or ¼", "three and one half or one quarter"),
        ("Chapter IV. Louis XIV and I", "Chapter four. Louis the fourteenth and I"),
    ],
)  # fmt: skip
def test_numbers_are_read_by_their_shape(written: str, said: str) -> None:
    assert read_aloud(written) == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("Dr. Lee vs. Mrs. Ray, e.g. apples, etc.", "Doctor Lee versus Missus Ray, for example apples, et cetera."),
        ("St. Paul on Baker St. today, Main St.", "Saint Paul on Baker Street today, Main Street"),
        ("Johnson & Sons @ home, #5, A+B=C", "Johnson and Sons at home, number five, A plus B equals C"),
        ("see www.example.com or me@mail.example.org", "see www dot example dot com or me at mail dot example dot org"),
        ("café naïve “quoted” word/word *bold*", 'cafe naive "quoted" word word bold'),
        ("an arrow → and a smile 🙂 (really)", "an arrow and a smile really"),
    ],
)
def test_abbreviations_and_symbols_become_words(written: str, said: str) -> None:
    assert read_aloud(written) == said


@pytest.mark.parametrize("text", ["I read it. He said so, didn't he?", "well-known; no -- yes!", "The Book I read"])
def test_plain_words_stay_as_they_are(text: str) -> None:
    assert read_aloud(text) == text


@settings(deadline=None, max_examples=300)
@given(
    text=st.one_of(
        st.text(st.one_of(st.characters(max_codepoint=0xFF), st.sampled_from("łŁđőışŒž“—…→№")), max_size=40),
        st.text("0123456789 .,:/-$%°'apmstIVX&#½²٣", max_size=25),
        st.from_regex(r"(\$|£|-)?\d{1,20}([.,/:-]\d{1,4}){0,3}( ?(km|am|%|th|s|m))?", fullmatch=True),
    )
)
def test_whatever_is_written_can_be_spelt_in_letters(text: str) -> None:
    assert spoken_words(read_aloud(text)) is not None
