#!/usr/bin/env python3
"""Verifies the JSON file of a certificate by docs/TENANCY.md alone, with nothing of dr.

    certificate.py FILE

Prints the public key and exits 0 when the signature holds, 1 otherwise.
"""

import json
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

with open(sys.argv[1], encoding="utf-8") as file:
    document = json.load(file)
signature = document["signature"]
canonical = json.dumps(document["certificate"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature["key"]))
try:
    key.verify(bytes.fromhex(signature["value"]), canonical.encode())
except InvalidSignature:
    sys.exit("the signature does not hold")
print(signature["key"])
