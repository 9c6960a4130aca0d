from pilotage.signals import parse_samples

LLAMA = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 33
# TYPE llamacpp:n_decode_total counter
llamacpp:n_decode_total 8
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 2
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 1
"""


def test_a_page_gives_its_sample():
    sample = parse_samples(
        LLAMA, running="llamacpp:requests_processing", waiting="llamacpp:requests_deferred",
        progress=("llamacpp:n_decode_total", "llamacpp:prompt_tokens_total"),
    )  # fmt: skip
    assert (sample.running, sample.waiting, sample.progress) == (2, 1, 41)


def test_what_the_page_does_not_say_is_absent_and_not_zero():
    sample = parse_samples("", running="a", waiting="b", progress=("c",))
    assert (sample.running, sample.waiting, sample.progress) == (None, None, None)
