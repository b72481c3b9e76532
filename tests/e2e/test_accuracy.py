"""How often the picture shows the shape and the colour of its prompt, at each precision, on the real host."""

import pytest
from prompt_accuracy import prompt_accuracy

# A tenth of the pictures of the model's card, for time: on 2 cores one takes 1.5 to 2.5 s.
COUNT = 20


@pytest.fixture(scope="module")
def accuracy(client):
    """A function from a precision to its share of right pictures, in percent; each precision is drawn once."""
    known = {}

    def measure(precision):
        if precision not in known:
            right, _ = prompt_accuracy(client, COUNT, precision=precision)
            known[precision] = 100 * right / COUNT
        return known[precision]

    return measure


def test_at_16_bit_the_small_model_draws_what_its_card_says(accuracy):
    assert accuracy("none") >= 95


def test_int8_is_within_1_point_of_16_bit(accuracy):
    assert accuracy("int8") >= accuracy("none") - 1


def test_nf4_is_within_3_points_of_16_bit(accuracy):
    assert accuracy("nf4") >= accuracy("none") - 3
