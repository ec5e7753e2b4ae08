"""The questions, one theme a file, in the order of the page."""

from ..question import Question
from . import cache, causal, clean, empty, features, half, masks, models

QUESTIONS: dict[str, Question] = {
    question.name: question
    for theme in (masks, empty, causal, clean, features, models, half, cache)
    for question in theme.QUESTIONS
}
