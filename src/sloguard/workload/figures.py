"""Fitted figures of the scenarios, printed by tools/fit_scenarios.py: refit them, don't edit them.

Lengths are in tokens of Llama 2's tokenizer except where the source counted its own.

| figure | source @commit | what of it |
|---|---|---|
| CHATBOT | ShareGPT, 8k: project-etalon/etalon @d5f18de1 | all rows, multi-turn with history in the prompt |
| CODER | Azure LLM inference trace 2023, code: Azure/AzurePublicDataset @b469a113 | all rows, Azure's tokens |
| SUMMARIZER | arXiv summarisation: microsoft/vidur @7d475133 | rows whose summary is no longer than the article |
| REASONING | MLPerf DeepSeek-R1: openshift-psap/performance-dashboard @71007029 | all rows; outputs are cut at 32768 |
| TOOL_PROMPT | BFCL v4: ShishirPatil/gorilla @6ea57973 | functions and user turns |
| TOOL_LOOPS | OpenBMB/ToolBench @d56fdd89, THUNLP-MT/StableToolBench @aa4ed9f4 | shares of 0, 1, 2.. calls |
| TOOL_RESULT, TOOL_CALL, TOOL_ANSWER | the same 18 trajectories | new tokens of a turn; output of a call, of the last |
| CONV_RATE | Azure trace, conv, [900, 1200) s | requests of up to 2048 tokens; gaps are Poisson's |
| CODE_RATE, CODE_GAPS | Azure trace, code, [1786, 2086) s | the same; (share, mean seconds) of four kinds of gaps |
"""

from sloguard.workload.lengths import FINE_LEVELS, Conditional, Quantiles

CHATBOT = Conditional(
    prompt=Quantiles((1, 12, 29, 74, 382, 777, 1203, 1730, 2401, 3235, 4278, 5696, 6563, 7434, 8141), FINE_LEVELS),
    outputs=(
        Quantiles((2, 4, 33, 60, 175, 397, 608, 815, 906, 994, 1024)),
        Quantiles((2, 9, 52, 103, 247, 422, 631, 832, 919, 999, 1024)),
        Quantiles((2, 7, 56, 111, 251, 425, 647, 854, 935, 1000, 1024)),
    ),
)
CODER = Conditional(
    prompt=Quantiles((3, 17, 75, 147, 386, 770, 1075, 1469, 1909, 2433, 3192, 5188, 7303, 7436, 7437), FINE_LEVELS),
    outputs=(
        Quantiles((6, 6, 6, 7, 9, 14, 24, 57, 91, 249, 1899)),
        Quantiles((6, 6, 6, 7, 9, 13, 23, 54, 85, 237, 871)),
        Quantiles((6, 6, 6, 7, 9, 13, 24, 55, 94, 288, 940)),
    ),
)
SUMMARIZER = Conditional(
    prompt=Quantiles(
        (59, 671, 1145, 1498, 1931, 2246, 2531, 2787, 3042, 3280, 3507, 3712, 3818, 3936, 4054), FINE_LEVELS
    ),
    outputs=(
        Quantiles((5, 34, 55, 72, 108, 157, 227, 330, 427, 834, 1884)),
        Quantiles((11, 37, 60, 78, 114, 166, 234, 327, 406, 736, 1711)),
        Quantiles((12, 37, 64, 82, 116, 163, 226, 299, 352, 475, 837)),
    ),
)
REASONING = Conditional(
    prompt=Quantiles((52, 73, 100, 124, 231, 759, 865, 902, 952, 1037, 1141, 1281, 1312, 1432, 3140), FINE_LEVELS),
    outputs=(
        Quantiles((212, 493, 1170, 1710, 2797, 5059, 9232, 14456, 18041, 24233, 32768)),
        Quantiles((209, 297, 398, 470, 644, 1051, 2510, 4996, 7815, 32768, 32768)),
        Quantiles((228, 490, 632, 747, 1041, 1657, 3334, 5696, 7558, 18246, 32768)),
    ),
)
TOOL_PROMPT = Quantiles((65, 111, 139, 157, 198, 387, 818, 1350, 1669, 2378, 5333))
TOOL_LOOPS = (0.0, 0.0, 0.2222, 0.5, 0.2222, 0.0556)
TOOL_RESULT = Quantiles((1, 1, 1, 1, 25, 93, 408, 493, 622, 992, 1038))
TOOL_CALL = Quantiles((20, 20, 20, 30, 37, 56, 171, 324, 364, 531, 722))
TOOL_ANSWER = Quantiles((34, 41, 68, 87, 112, 150, 240, 288, 416, 654, 714))
CONV_RATE = 4.64
CODE_RATE = 1.86
CODE_GAPS = ((0.2091, 0.00127), (0.7103, 0.187), (0.0611, 1.14), (0.0195, 16.7))
