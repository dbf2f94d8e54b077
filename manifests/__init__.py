"""The manifest: its format, its reader, its checks. Importing this needs the base install only.

Open one with `lmsplit.manifests.reader.Manifest.open(path)`; `README.md` beside this file specifies the format.
"""
