"""Writes files as Hillstrom's challenge describes its data; shares nothing with what reads them."""

import csv
import random

COLUMNS = (
    *("recency", "history_segment", "history", "mens", "womens", "zip_code", "newbie", "channel"),
    *("segment", "visit", "conversion", "spend"),
)
BANDS = (
    *("1) $0 - $100", "2) $100 - $200", "3) $200 - $350", "4) $350 - $500", "5) $500 - $750"),
    *("6) $750 - $1,000", "7) $1,000 +"),
)
CAMPAIGNS = ("Mens E-Mail", "Womens E-Mail", "No E-Mail")


def customers(count, seed=0):
    """Rows as dictionaries of text, by the names of the columns."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        visit = rng.random() < 0.3
        bought = visit and rng.random() < 0.4
        mens = rng.random() < 0.5
        found.append(
            {
                "recency": str(rng.randint(1, 12)),
                "history_segment": rng.choice(BANDS),
                "history": f"{rng.uniform(29.99, 3345.93):.2f}",
                "mens": str(int(mens)),
                "womens": str(int(not mens or rng.random() < 0.3)),
                "zip_code": rng.choice(["Surburban", "Rural", "Urban"]),  # so in the file
                "newbie": str(rng.randint(0, 1)),
                "channel": rng.choice(["Phone", "Web", "Multichannel"]),
                "segment": rng.choice(CAMPAIGNS),
                "visit": str(int(visit)),
                "conversion": str(int(bought)),
                "spend": f"{rng.uniform(29.99, 499):.2f}" if bought else "0",
            }
        )
    return found


def write(path, rows, columns=COLUMNS, renamed=None):
    """Write rows as CSV, in any order of columns and with other names for some."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([(renamed or {}).get(name, name) for name in columns])
        writer.writerows([row[name] for name in columns] for row in rows)
