"""Comparison of two runs: which arms changed by how much, and whether a gate lets them pass.

- :mod:`.operands` reads what A and B name; :mod:`.comparable` refuses what cannot be compared.
- :mod:`.pairing` finds how the two were measured: in the same rounds, in turns, or apart.
- :mod:`.timings` makes samples of an arm's times; :mod:`.build` makes the rows.
- :mod:`.gate` judges rows; sentences are made by :mod:`.change_result` and
  :mod:`.change_sentences`; :mod:`.document` writes them for people and for programs.
"""
