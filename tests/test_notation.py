"""The notation: what a text means, that it round-trips, and that every malformed text is refused with its place."""

import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

import collective_rules as cr
from collective_rules.notation import (
    GroupSize,
    Name,
    Number,
    Part,
    Path,
    Rest,
    Shares,
    Splits,
    Statement,
    names,
    parse,
    parse_path,
)
from collective_rules.notation.tokenizer import tokenize
from collective_rules.ops import OPS

TEXTS = sorted(
    {form.text for rule in cr.rules().values() for form in rule.forms} | {cr.lookup(op).notation for op in OPS}
)
PATHS = sorted({path for entry in OPS.values() for path in entry.parts.values()})
RESERVED = ("W", "r", "p", "i", "peer")


# -- strategies: statements as objects, and texts that are almost rules

plain_names = st.from_regex(r"[a-z][a-z_0-9]{0,4}", fullmatch=True).filter(lambda name: name not in RESERVED)
matrix_names = st.from_regex(r"[A-VX-Z][A-Z0-9]{0,2}", fullmatch=True)
indices = st.lists(st.sampled_from(["r", "p", "peer"]), min_size=1, max_size=3).map(tuple)
paths = st.builds(
    Path,
    st.from_regex(r"[A-Za-z_][A-Za-z_0-9]{0,4}", fullmatch=True),
    st.lists(st.sampled_from(["p", "i", "1"]), max_size=3)
    .filter(lambda index: index.count("p") < 2 and index.count("i") < 2)
    .map(tuple),
)
rests = st.builds(Rest, plain_names, st.one_of(st.just(()), indices))
single_sizes = st.one_of(
    st.builds(Name, plain_names, st.one_of(st.just(()), indices)),
    st.builds(Number, st.integers(0, 9999)),
    st.builds(GroupSize),
    st.builds(Shares, plain_names),
    st.builds(Splits, matrix_names, st.just(":"), st.sampled_from(["r", "p", "peer"])),
    st.builds(Splits, matrix_names, st.sampled_from(["r", "p", "peer"]), st.just(":")),
)


@st.composite
def parts(draw: st.DrawFn) -> Part:
    """One part: at most one rest, anywhere, and no name twice."""
    sizes = draw(st.lists(single_sizes, max_size=4))
    if draw(st.booleans()):
        sizes.insert(draw(st.integers(0, len(sizes))), draw(rests))
    kept, seen = [], set()
    for size in sizes:
        name = getattr(size, "name", None)
        if name is None or name not in seen:
            kept.append(size)
            seen.add(name)
    return Part(draw(paths), tuple(kept), draw(st.booleans()))


sides = st.lists(parts(), max_size=3, unique_by=lambda part: part.path.name).map(tuple)
statements = st.builds(Statement, sides, sides)

words = "-> : , * @ ( ) [ ] W d s S r p i 1 peer root 07 input output outputs 12345 *s [p] S[r,:] - $ é"
tokens = st.sampled_from(words.split()) | st.sampled_from([" ", "\n", "input: ", "(W d)"])
token_soup = st.lists(tokens, max_size=25).map("".join)


@st.composite
def mutated_rules(draw: st.DrawFn) -> str:
    """A rule's text with one character dropped, doubled, replaced, inserted or swapped with its neighbour."""
    text = draw(st.sampled_from(TEXTS))
    place = draw(st.integers(0, len(text) - 1))
    character = draw(st.one_of(st.sampled_from(sorted(set("".join(TEXTS)))), st.characters()))
    before, here, after = text[:place], text[place], text[place + 1 :]
    return draw(
        st.sampled_from(
            [
                before + after,
                before + here + here + after,
                before + character + after,
                before + character + here + after,
                before + after[:1] + here + after[1:],
            ]
        )
    )


def refusal(text: str) -> cr.NotationError:
    """The error that `text` is refused with."""
    with pytest.raises(cr.NotationError) as caught:
        parse(text)
    return caught.value


# -- what a text means

GOLDEN = {
    "->": Statement((), ()),
    "input: -> output: W": Statement((Part(Path("input"), ()),), (Part(Path("output"), (GroupSize(),)),)),
    "input: d *s -> output: (W d) *s": Statement(
        (Part(Path("input"), (Name("d"), Rest("s"))),), (Part(Path("output"), (Shares("d"), Rest("s"))),)
    ),
    "input: *s (W d) -> output: *s d": Statement(
        (Part(Path("input"), (Rest("s"), Shares("d"))),), (Part(Path("output"), (Rest("s"), Name("d"))),)
    ),
    "inputs[p]: *s @root -> output: *s": Statement(
        (Part(Path("inputs", ("p",)), (Rest("s"),), root_only=True),), (Part(Path("output"), (Rest("s"),)),)
    ),
    "inputs[p]: *s[r,p] -> outputs[p]: *s[p,r]": Statement(
        (Part(Path("inputs", ("p",)), (Rest("s", ("r", "p")),)),),
        (Part(Path("outputs", ("p",)), (Rest("s", ("p", "r")),)),),
    ),
    "input: S[r,:] *s -> output: S[:,r] *s": Statement(
        (Part(Path("input"), (Splits("S", "r", ":"), Rest("s"))),),
        (Part(Path("output"), (Splits("S", ":", "r"), Rest("s"))),),
    ),
    "-> output: *s[peer,r]": Statement((), (Part(Path("output"), (Rest("s", ("peer", "r")),)),)),
    "input: *s ->": Statement((Part(Path("input"), (Rest("s"),)),), ()),
    "a[1][p]: 2 W, b: k n[r] -> c[p][i]:": Statement(
        (Part(Path("a", ("1", "p")), (Number(2), GroupSize())), Part(Path("b"), (Name("k"), Name("n", ("r",))))),
        (Part(Path("c", ("p", "i")), ()),),
    ),
}


@pytest.mark.parametrize("text", GOLDEN)
def test_a_text_means_these_nodes(text: str) -> None:
    """Each line of the grammar, by example."""
    assert GOLDEN[text] == parse(text)


@pytest.mark.parametrize("text", TEXTS)
def test_every_rule_is_written_canonically(text: str) -> None:
    """The text of a rule, in its own parts and in each op's arguments, is what its nodes print."""
    assert text == str(parse(text))


@pytest.mark.parametrize("text", PATHS)
def test_every_path_of_the_op_table_is_written_canonically(text: str) -> None:
    """A path is what its node prints."""
    assert text == str(parse_path(text))


@given(statements)
def test_every_statement_survives_being_written_and_read(statement: Statement) -> None:
    """The text says everything that the nodes hold, and nothing can be read two ways."""
    assert statement == parse(str(statement))


@given(statements)
def test_spaces_do_not_change_the_meaning(statement: Statement) -> None:
    """Any number of spaces can stand between two tokens, also none beside punctuation."""
    spaced = "   ".join(["", *(token.text for token in tokenize(str(statement))), ""])
    assert statement == parse(spaced)


@given(paths)
def test_every_path_survives_being_written_and_read(path: Path) -> None:
    """A path alone round-trips too."""
    assert path == parse_path(str(path))


@given(statements)
def test_a_span_marks_the_text_of_its_part(statement: Statement) -> None:
    """A part's span cuts exactly that part out of the canonical text."""
    text = str(statement)
    assert [str(part) for part in statement.parts] == [text[slice(*part.span)] for part in parse(text).parts]


@given(parts())
def test_the_names_of_a_part_are_those_that_its_sizes_bind(part: Part) -> None:
    """W and numbers bind nothing; everything else binds its name."""
    assert {size.name for size in part.sizes if not isinstance(size, (GroupSize, Number))} == names(part)


# -- what is refused, and how

MESSAGES = {
    "input: (d W) -> output: d": """\
write (W d): the ranks' pieces lie one after another
  input: (d W) -> output: d
          ^""",
    "input: (N d) -> output: d": """\
only (W d) can be in brackets
  input: (N d) -> output: d
          ^""",
    "input: *first *second ->": """\
a part has at most one *rest: where it ends could not be told
  input: *first *second ->
                ^""",
    "input: d -> output: 007": """\
a number is written plainly, and has at most four digits
  input: d -> output: 007
                      ^~~""",
    "input: d -> output: peer": """\
peer is reserved: it is the partner
  input: d -> output: peer
                      ^~~~""",
    "input: S[:,:] -> output: d": """\
split sizes are a row S[r,:] or a column S[:,r]
  input: S[:,:] -> output: d
         ^""",
    "input: d[rank] -> output: d": """\
an index is r (this rank), p (the ranks), peer or ':'
  input: d[rank] -> output: d
           ^~~~""",
    "inputs[rank]: d -> output: d": """\
a list is indexed by p (the ranks), i (coalesced tensors) or 1 (exactly one)
  inputs[rank]: d -> output: d
         ^~~~""",
    "inputs[p][p]: d -> output: d": """\
p indexes this path twice
  inputs[p][p]: d -> output: d
            ^""",
    "input: d @leaf -> output: d": """\
only 'root' can follow '@'
  input: d @leaf -> output: d
            ^~~~""",
    "input: d *s, input: e -> output: d": """\
input is stated twice
  input: d *s, input: e -> output: d
               ^~~~~~~~""",
    "input: d (W d) -> output: d": """\
input uses one name for two of its sizes
  input: d (W d) -> output: d
  ^~~~~~~~~~~~~~""",
    "input: d => output: d": """\
'=' has no meaning here
  input: d => output: d
           ^""",
    "input: *s[r,:] -> output: d": """\
a *rest has a lower-case name, and no ':', which sums split sizes
  input: *s[r,:] -> output: d
           ^""",
    "input d -> output: d": """\
expected ':' and the sizes, found 'd'
  input d -> output: d
        ^""",
}


@pytest.mark.parametrize("text", MESSAGES)
def test_the_message_says_what_is_wrong_and_points_at_it(text: str) -> None:
    """The whole message, with the caret line."""
    assert MESSAGES[text] == str(refusal(text))


def test_a_text_that_ends_too_early_is_pointed_at_its_end() -> None:
    """The caret stands one past the last character."""
    error = refusal("input: d")
    assert (error.start, error.stop) == (8, 9)
    assert str(error).splitlines()[-2:] == ["  input: d", "          ^"]


@pytest.mark.parametrize("name", RESERVED)
def test_a_reserved_name_cannot_be_a_size(name: str) -> None:
    """W, r, p, i and peer mean one thing each; only W can stand for a size."""
    assert "reserved" in refusal(f"input: *{name} ->").message
    if name != "W":
        assert "reserved" in refusal(f"input: {name} ->").message


@pytest.mark.parametrize(
    "text", ["input: D ->", "input: *S ->", "input: (W D) ->", "input: D[r] ->", "input: s[r,:] ->"]
)
def test_the_matrix_of_splits_is_upper_case_and_nothing_else(text: str) -> None:
    """As the grammar says; an argument is called what torch calls it."""
    assert isinstance(refusal(text), cr.NotationError)


def outcome(read: Callable[[str], object], text: str) -> object:
    """What `text` means, or the error that it is refused with."""
    try:
        return read(text)
    except cr.NotationError as error:
        return error


def judge(text: str, read: Callable[[str], object] = parse) -> None:
    """A text is either read, and then round-trips, or refused with a place inside it and a caret under the place."""
    found = outcome(read, text)
    if not isinstance(found, cr.NotationError):
        assert found == read(str(found))
        return
    assert text == found.text
    assert 0 <= found.start < found.stop <= len(text) + 1
    *said, shown, carets = str(found).split("\n")
    assert found.message == "\n".join(said)
    column, marks = len(carets) - len(carets.lstrip(" ")), carets.strip(" ")
    assert "^" + "~" * (len(marks) - 1) == marks
    wanted = "".join(c if c.isprintable() else "\ufffd" for c in text[found.start : found.stop])
    assert wanted[: len(marks)] == shown[column : column + len(marks)]
    assert len(shown) <= 102
    str(found).encode()


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_with_its_place(text: str) -> None:
    """Whatever is written, no other exception comes back."""
    judge(text)


@given(token_soup)
def test_any_soup_of_tokens_is_read_or_refused_with_its_place(text: str) -> None:
    """The same for texts that are made of the right words."""
    judge(text)


@given(mutated_rules())
def test_a_rule_with_a_wrong_character_is_read_or_refused_with_its_place(text: str) -> None:
    """The same for slips of the pen."""
    judge(text)


@pytest.mark.parametrize("text", TEXTS)
def test_every_beginning_of_a_rule_is_read_or_refused_with_its_place(text: str) -> None:
    """The same for a rule that is not yet written to its end."""
    for stop in range(len(text)):
        judge(text[:stop])


@given(st.one_of(st.text(max_size=40), token_soup))
def test_any_path_is_read_or_refused(text: str) -> None:
    """A path alone is refused in the same way."""
    judge(text, parse_path)


# -- work grows linearly with the text

NASTY: dict[str, Callable[[int], str]] = {
    "spaces": lambda n: " " * n,
    "one long name": lambda n: "a" * n,
    "one long number": lambda n: "a: " + "9" * n,
    "stars": lambda n: "a: " + "*" * n,
    "commas": lambda n: "a:" + "," * n,
    "opening brackets": lambda n: "a: " + "(" * n,
    "opening indices": lambda n: "a" + "[" * n,
    "indices of one": lambda n: "a" + "[1]" * n + ": ->",
    "indices": lambda n: "a: d[" + ",".join(["r"] * n) + "] ->",
    "indices of a rest": lambda n: "a: *d[" + ",".join(["r"] * n) + "] ->",
    "shares": lambda n: "a: " + " ".join(f"(W d{k})" for k in range(n)) + " ->",
    "numbers": lambda n: "a: " + "1 " * n + "->",
    "group sizes": lambda n: "a: " + "W " * n + "->",
    "names": lambda n: "a: " + " ".join(f"d{k}" for k in range(n)) + " ->",
    "one name again and again": lambda n: "a: " + "d " * n + "->",
    "rests": lambda n: "a: " + "*d " * n + "->",
    "parts": lambda n: ", ".join(f"a{k}: *s" for k in range(n)) + " ->",
    "parts on both sides": lambda n: " -> ".join([", ".join(f"a{k}:" for k in range(n))] * 2),
    "one part again and again": lambda n: ", ".join(["a: *s"] * n) + " ->",
    "arrows": lambda n: "->" * n,
    "carets of a long part": lambda n: "a: " + " ".join(f"d{k}" for k in range(n)) + " d0 ->",
}


def steps(text: str) -> int:
    """How many calls (of Python and C functions, and resumed generators) it takes to read or refuse `text`."""
    count = 0

    def on_event(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        parse.__wrapped__(text)
    except cr.NotationError as error:
        str(error)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("kind", NASTY)
def test_the_work_grows_linearly_with_the_text(kind: str) -> None:
    """Ten times the text takes at most about ten times the steps; what is refused at once takes none more."""
    short, long = (NASTY[kind](n) for n in (200, 2_000))
    assert steps(long) <= 11 * steps(short) + 100


@pytest.mark.parametrize("kind", NASTY)
def test_a_text_of_ten_kilobytes_is_read_or_refused(kind: str) -> None:
    """No kind of long text meets a limit of Python's (recursion, the digits of an int)."""
    text = NASTY[kind](10_000)
    assert len(text) >= 10_000
    judge(text[:10_000])


@given(st.one_of(st.text(max_size=100), token_soup))
def test_there_are_no_more_tokens_than_characters(text: str) -> None:
    """Each token takes at least one character, but for the end."""
    found = outcome(lambda text: list(tokenize(text)), text)
    if isinstance(found, list):
        assert len(found) <= len(text) + 1
        assert sorted(found, key=lambda token: token.start) == found
        assert all(token.text == text[token.start : token.start + len(token.text)] for token in found)
