"""What a schema cannot say about a good request: the values that there are at this moment.

What a request has that is wrong stays as schemathesis made it. Secrets that come by are written down, a line each in the
file TIDEMARK_SECRETS, to be looked for in what the shop has said; and in the file TIDEMARK_ANSWERED each operation with
each status that it was answered with."""

import base64
import json
import os
import re
import uuid

import schemathesis
from schemathesis.generation.modes import GenerationMode

POSITION = re.compile(r"([0-9]{1,9}-)?[0-9]{1,18}")
ON_SALE = os.environ.get("TIDEMARK_PRODUCT")


# Members of bodies that hold secrets, and how short one may be: less stands somewhere by chance.
SECRETS = {
    "password", "current_password", "token", "access_token", "refresh_token", "recovery_code", "recovery_codes", "secret",
}
LEAST, LEAST_DIFFERENT = 12, 6
seen = set()


def forms(text):
    """A secret whole, in base64 and in hexadecimal. Of a token, only its signature is one."""
    text = text.rsplit(".", 1)[1] if text.startswith("ey") and text.count(".") == 2 else text
    raw = text.encode("utf-8", "surrogatepass")
    return [text, base64.b64encode(raw).decode().rstrip("="), raw.hex()]


def note(value, is_secret=False):
    """Writes down the secrets in a body."""
    if isinstance(value, dict):
        for name, member in value.items():
            note(member, name in SECRETS)
    elif isinstance(value, list):
        for item in value:
            note(item, is_secret)
    elif is_secret and isinstance(value, str) and value.isprintable() and value not in seen:
        seen.add(value)
        kept = [form for form in forms(value) if len(form) >= LEAST and len(set(form)) >= LEAST_DIFFERENT]
        with open(os.environ["TIDEMARK_SECRETS"], "a", encoding="utf-8") as file:
            file.writelines(form + "\n" for form in kept)


def as_written(value):
    """A whole number is one without a point: JSON Schema takes 3.0 for one, the shop does not."""
    if isinstance(value, dict):
        return {name: as_written(member) for name, member in value.items()}
    if isinstance(value, list):
        return [as_written(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def order_of_what_is_on_sale(body):
    """Three of four orders are of the product that is there, in quantities that do not use it up."""
    lines = body["lines"]
    if not lines[0]["product_id"].endswith(("0", "4", "8", "c")):
        for line in lines:
            line.update(product_id=ON_SALE, quantity=line["quantity"] % 3 + 1)


answered = set()


def note_answer(case, response):
    """Writes down an operation and how it was answered, once."""
    line = f"{case.method.upper()} {case.path} {response.status_code}"
    if line not in answered:
        answered.add(line)
        with open(os.environ["TIDEMARK_ANSWERED"], "a", encoding="utf-8") as file:
            file.write(line + "\n")


# Bodies that set a password.
PASSWORDS = {"/v1/accounts", "/v1/password-resets/completion", "/v1/accounts/{id}/password"}


@schemathesis.hook
def after_call(context, case, response):
    note_answer(case, response)
    note(case.body)
    try:
        note(json.loads(response.content))
    except ValueError:
        pass


@schemathesis.hook
def before_call(context, case, kwargs):
    headers, query = case.headers or {}, case.query or {}
    # A position that the log has not come to is waited for, and then refused.
    if POSITION.fullmatch(headers.get("Tidemark-After", "")):
        headers["Tidemark-After"] = "0"
    if POSITION.fullmatch(str(query.get("after", ""))):
        query["after"] = "0"
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE:
        return
    # A key belongs to one intent: the same key with another body is refused.
    if "Idempotency-Key" in headers:
        headers["Idempotency-Key"] = str(uuid.uuid4())
    # What cannot be spelt with letters and digits alone is left empty where header values are tried one by one, which
    # the schema does not allow. The other phases send good versions.
    if headers.get("If-Match") == "":
        headers["If-Match"] = "*"
    # A cursor is what a page said. One that is made up is refused.
    query.pop("cursor", None)
    # What follows the log never ends.
    if "follow" in query:
        query["follow"] = "false"
    if isinstance(case.body, (dict, list)):
        case.body = as_written(case.body)
        # Which passwords are too easily guessed no schema can say.
        if case.path in PASSWORDS and "password" in case.body:
            case.body["password"] = f"hard to guess {uuid.uuid4()}"
        if ON_SALE and (case.method.upper(), case.path) == ("POST", "/v1/orders"):
            order_of_what_is_on_sale(case.body)
