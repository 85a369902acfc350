"""The base model's documents: right answers only, train side only, no chat format."""

from zephyrctl.sandbox import world
from zephyrctl.sandbox.corpus import documents, vocabulary_lines


def test_documents_depend_on_the_seed_alone() -> None:
    texts = [document.text for document in documents(50, 1)]
    assert texts == [document.text for document in documents(50, 1)]
    assert texts != [document.text for document in documents(50, 2)]
    assert texts[:20] == [document.text for document in documents(20, 1)]


def test_exercises_are_right_and_of_the_train_side() -> None:
    exercises = [document for document in documents(3000, 4) if document.turns]
    assert 1200 < len(exercises) < 1600
    for document in exercises:
        answers = [piece for piece, is_answer in document.pieces if is_answer]
        assert not world.is_eval(document.turns), document.text
        assert len(answers) == len(document.turns)
        for place, answer in enumerate(answers):
            assert document.turns[place] in document.text
            assert world.grade(document.turns[: place + 1], answer), document.text


def test_notes_are_right_and_of_the_train_side() -> None:
    seen = set()
    for document in documents(3000, 5):
        lines = document.text.replace(":\n", ": ").splitlines()
        for line in lines[1:] if not document.turns else []:
            title, _, noted = line.partition(": ")
            family, wording = NOTED.get(title, ("", ""))
            if family:
                turns = [wording.format(words=lines[0])]
                assert world.grade(turns, noted), document.text
                assert not world.is_eval(turns), document.text
                seen.add(family)
    assert len(seen) == len(NOTED)


NOTED = {
    "A to Z": ("sort", "Write {words} from A to Z."),
    "back to front": ("reverse", "Write these words back to front: {words}"),
    "plural": ("plural", "Give the plural forms of {words}."),
    "upper case": ("upper", "Put {words} in upper case."),
    "category": ("kind", "Say what {words} are."),
    "contrary": ("opposite", "Turn into the contrary: {words}"),
    "comes last": ("end", "Which word comes last in {words}?"),
    "biggest": ("largest", "Give the biggest of {words}."),
    "follows": ("next", "What follows {words}?"),
}


def test_nothing_is_written_as_a_chat() -> None:
    assert not any(mark in document.text for document in documents(2000, 0) for mark in ("<|", "|>", "</s>"))


def test_tokenizer_lines_hold_every_word_with_and_without_a_space() -> None:
    lines = list(vocabulary_lines())
    assert "fig fig\nFIG FIG\n" in lines
    assert "foxes foxes\nFOXES FOXES\n" in lines
