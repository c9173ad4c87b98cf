r"""One verdict for reward and evaluation: what was answered, and whether it is right.

The files in the order in which an answer travels; each line says what a file takes and returns.

The text of an answer

    verdict.py      takes a gold and a response, calls the files below, and returns a ``Verdict``
    answer.py       takes a response and returns the text in its last box; takes two texts and returns whether they name
                    the same choice; takes a text and returns whether it is too long, or too costly for computer algebra
    latex.py        takes a text and returns it tidied: one spelling, with words as ``\w{word}``; and its key, which is
                    equal for two answers of the same text

From text to tree

    tokens.py       takes a tidied text and returns its tokens
    expressions.py  takes tokens and returns the tree of one value
    parser.py       takes a tidied text and returns its tree, lists, relations and units included, or ``Unreadable``
    tree.py         defines the nodes; takes a tree and returns its nodes, its variables, or a changed tree
    vocabulary.py   holds the names of functions, words and characters that these files know
    units.py        takes the words after a number and returns the unit they are

From two trees to a comparison

    equality.py     takes two trees and returns whether they are the same answer, None where it cannot tell
    plain.py        takes a tree and returns it in fewer forms: ``3 + 4 = 7`` is 7, plus-minus is two values
    regions.py      takes two sets of real numbers and returns whether their intervals are the same
    equations.py    takes two expressions and returns whether they are equal up to a factor; takes an equation and an
                    expression and returns whether that solves it
    quantities.py   takes two values with units, percent or degrees and returns whether they are the same
    values.py       takes two expressions and returns whether their values are the same to 40 digits
    rationals.py    takes a tree and returns its exact fraction, or ``NotExact``, ``Undefined`` or ``TooBig``

What is still open

    pool.py         takes the two texts and returns the verdict of a worker process, which it kills when time is up
    worker.py       takes the two texts in that process and returns whether math-verify finds them equal
"""

from segrl.grading.verdict import Verdict, grade, grade_answer, grade_answer_async, grade_async

__all__ = ["Verdict", "grade", "grade_answer", "grade_answer_async", "grade_async"]
