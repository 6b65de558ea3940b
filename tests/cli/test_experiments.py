"""The commands that run experiments: how they refuse wrong options. What they measure is tested with the evaluation."""

from support.command_line import FAST, Kwbench, refused


def test_messages_name_the_option_that_was_typed(kwb: Kwbench) -> None:
    refused(kwb("evaluate", "small", *FAST, "--n", 0), 2, "--n 0: must be at least 1")
    refused(kwb("landscape", "small", "--images", "400"), 2, "--images 400", "360 test images")
    refused(kwb("landscape", "small", "--radius", "abc"), 2, "'abc' is not a number")
    refused(kwb("sweep", "small", "--over", "foo.steps=1,2", "--attack", "pgd"), 2, "--over foo.steps=1")
    refused(kwb("sweep", "small", "--over", "eps=a,b", "--attack", "pgd"), 2, "'a' is not a number")
    refused(kwb("experiment", "foo", "small"), 2, "learning")
