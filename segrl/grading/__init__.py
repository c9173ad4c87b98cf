"""One verdict for reward and evaluation: what was answered, and is it right."""

from segrl.grading.verdict import Verdict, grade, grade_answer, grade_answer_async, grade_async

__all__ = ["Verdict", "grade", "grade_answer", "grade_answer_async", "grade_async"]
