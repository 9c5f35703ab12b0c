"""Points and boxes in answers: the notations of families, fractions of the picture, and what is only text."""

import pytest

from mlxk.domain.formats.regions import Region, regions_in

READ = [
    (
        "<|ref|>title<|/ref|><|det|>[[0, 0, 999, 333]]<|/det|>\n# A title",
        (Region("title", ((0.0, 0.0), (1.0, 0.3333))),),
    ),
    (
        "<|ref|>cat<|/ref|><|det|>[[0, 0, 99, 99], [333, 333, 666, 666]]<|/det|>",
        (Region("cat", ((0.0, 0.0), (0.0991, 0.0991))), Region("cat", ((0.3333, 0.3333), (0.6667, 0.6667)))),
    ),
    (
        "Here: <|object_ref_start|>the dog<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|>.",
        (Region("the dog", ((0.1, 0.2), (0.3, 0.4))),),
    ),
    ("<|box_start|>(500,250)<|box_end|>", (Region("", ((0.5, 0.25),)),)),
    (
        "Total<|LOC_100|><|LOC_100|><|LOC_300|><|LOC_100|><|LOC_300|><|LOC_200|><|LOC_100|><|LOC_200|>",
        (Region("Total", ((0.1, 0.1), (0.3, 0.1), (0.3, 0.2), (0.1, 0.2))),),
    ),
    (
        "<ref>dog</ref><box><100><200><300><400></box><box><500><250></box>",
        (Region("dog", ((0.1, 0.2), (0.3, 0.4))), Region("dog", ((0.5, 0.25),))),
    ),
    (
        "<ref>a cat</ref><box>[[0, 0, 500, 1000], [10, 20, 30, 40]]</box>",
        (Region("a cat", ((0.0, 0.0), (0.5, 1.0))), Region("a cat", ((0.01, 0.02), (0.03, 0.04)))),
    ),
    ("<ref>sky</ref><box>(0,0),(1000,250)</box> above", (Region("sky", ((0.0, 0.0), (1.0, 0.25))),)),
    ("car<loc_0><loc_0><loc_999><loc_333>", (Region("car", ((0.0005, 0.0005), (0.9995, 0.3335))),)),
    (
        "a car<loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><loc_7><loc_8>door<loc_9><loc_9><loc_9><loc_9>",
        (
            Region("a car", ((0.0015, 0.0025), (0.0035, 0.0045))),
            Region("a car", ((0.0055, 0.0065), (0.0075, 0.0085))),
            Region("door", ((0.0095, 0.0095), (0.0095, 0.0095))),
        ),
    ),
    (
        "EXIT<loc_100><loc_100><loc_300><loc_100><loc_300><loc_200><loc_100><loc_200></s>",
        (Region("EXIT", ((0.1005, 0.1005), (0.3005, 0.1005), (0.3005, 0.2005), (0.1005, 0.2005))),),
    ),
    (
        "<poly><loc_1><loc_1><loc_9><loc_1><loc_5><loc_9><sep><loc_20><loc_20><loc_29><loc_20><loc_25><loc_29></poly>",
        (
            Region("", ((0.0015, 0.0015), (0.0095, 0.0015), (0.0055, 0.0095))),
            Region("", ((0.0205, 0.0205), (0.0295, 0.0205), (0.0255, 0.0295))),
        ),
    ),
    ("<loc_500><loc_250> here", (Region("", ((0.5005, 0.2505),)),)),
    (
        "<loc0256><loc0512><loc0768><loc1023> cat ; <loc0000><loc0000><loc0512><loc0512> dog",
        (Region("cat", ((0.5, 0.25), (0.999, 0.75))), Region("dog", ((0.0, 0.0), (0.5, 0.5)))),
    ),
    ('<point x="63.5" y="44.2" alt="nose">nose</point>', (Region("nose", ((0.635, 0.442),)),)),
    (
        'Two: <points x1="10" y1="20.5" x2="30" y2="40" alt="ears">ears</points>',
        (Region("ears", ((0.1, 0.205),)), Region("ears", ((0.3, 0.4),))),
    ),
]


@pytest.mark.parametrize(("text", "regions"), READ)
def test_each_notation_is_read(text: str, regions: tuple[Region, ...]) -> None:
    assert regions_in(text) == regions
    assert {region.kind for region in regions} <= {"point", "box", "polygon"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A cat at (100,200).",
        "<|det|>[[1, 2, 3]]<|/det|>",
        "<|det|>[[1, 2, 3, 4]<|/det|>",
        "<|det|>[[0, 0, 1000, 5]]<|/det|>",
        "<|det|>[[10, 10, 5, 5]]<|/det|>",
        "<|ref|>cat<|/ref|>",
        "<|box_start|>(100,200),(300",
        "<|box_start|>(1001,1)<|box_end|>",
        "<box>none</box>",
        "<ref>cat</ref>",
        "<box><100><200><300></box>",
        "<box><100><200><1001><400></box>",
        "<box>[[1, 2, 3, 4]</box>",
        "<box>(1,2),(3</box>",
        "<box>" * 10_000 + "<1>" * 10_000,
        "<loc_1>",
        "<loc_1><loc_2><loc_3>",
        "<poly><sep></poly>",
        "<loc0001><loc0002><loc0003>",
        "<loc1025><loc0000><loc1026><loc0001> cat",
        '<point x="101" y="1">a</point>',
        '<point x="-1" y="1">a</point>',
        '<point x="1">a</point>',
        '<point x="nan" y="inf">a</point>',
        "<|det|>" + "[" * 100_000 + "<|/det|>",
    ],
)
def test_what_is_not_whole_is_text(text: str) -> None:
    assert regions_in(text) == ()
