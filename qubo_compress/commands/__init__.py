"""The commands of ``qubo-compress``: one file each, and what they share.

``settings.py`` lists every setting once: the keys of a recipe and the options of the commands are made from it. Nothing
here imports torch before a command runs.
"""
