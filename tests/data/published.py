"""Writes files as publishers of data sets describe them; shares nothing with what reads them."""

import gzip
import random

import numpy as np

COAT_USER = (
    *("gender:men", "gender:women", "age:20-30", "age:30-40", "age:40-50", "age:50-60"),
    *("age:over 60", "age:under 20", "location:rural", "location:suburban", "location:urban"),
    *("fashioninterest:moderately", "fashioninterest:not at all", "fashioninterest:very"),
)
COAT_ITEM = (
    *("gender:men", "gender:women", "jackettype:bomber", "jackettype:parkas", "color:beige"),
    *("color:black", "color:blue", "onfrontpage:yes", "onfrontpage:no"),
)


def ratings(users, items, chosen, shown, seed=0):
    """Two matrices of ratings from 1 to 5, 0 for none, as people chose and as chance showed.

    Each user rates ``chosen`` items that they choose and ``shown`` other ones, drawn from all of
    them; a pair has one rating, wherever it stands.
    """
    rng = np.random.default_rng(seed)
    like = rng.normal(size=(users, 2)) @ rng.normal(size=(2, items))
    rating = np.clip(np.rint(3 + like + rng.normal(size=like.shape)), 1, 5).astype(int)
    picked, drawn = np.zeros((2, users, items), dtype=bool)
    for user in range(users):
        weight = np.exp(like[user])
        picked[user, rng.choice(items, chosen, replace=False, p=weight / weight.sum())] = True
        drawn[user, rng.choice(items, shown, replace=False)] = True
    return rating * picked, rating * drawn


def _one_hot(names, rows, rng):
    groups = {}
    for place, name in enumerate(names):
        groups.setdefault(name.split(":")[0], []).append(place)
    for _ in range(rows):
        on = {rng.choice(places) for places in groups.values()}
        yield [int(place in on) for place in range(len(names))]


def write_coat(raw, users=30, items=40, chosen=8, shown=6, seed=0):
    """Coat Shopping: lines of numbers with blanks between (and behind) them, no header.

    Returns:
        Both matrices, the users' and the items' one-hot rows, and the propensities.
    """
    rng = random.Random(seed)
    train, test = ratings(users, items, chosen, shown, seed)
    features = raw / "user_item_features"
    features.mkdir(parents=True)
    for name, matrix in (("train", train), ("test", test)):
        lines = (" ".join(map(str, row)) + " \n" for row in matrix)
        (raw / f"{name}.ascii").write_text("".join(lines))
    hot = []
    for side, names, count in (("user", COAT_USER, users), ("item", COAT_ITEM, items)):
        rows = list(_one_hot(names, count, rng))
        lines = (" ".join(map(str, row)) + "\r\n" for row in rows)
        (features / f"{side}_features.ascii").write_text("".join(lines), newline="")
        (features / f"{side}_features_map.txt").write_text("\n".join(names))
        hot.append(rows)
    propensity = [[rng.uniform(0.01, 0.6) for _ in range(items)] for _ in range(users)]
    lines = (" ".join(f"{value:.18e}" for value in row) + " \n" for row in propensity)
    (raw / "propensities.ascii").write_text("".join(lines))
    return train, test, *hot, np.array(propensity)


def write_yahoo(raw, users=20, songs=15, chosen=5, shown=4, seed=0):
    """Yahoo! R3: user, song and rating with tabs between, from 1 on, no header.

    Songs are drawn for the first half of the users.

    Returns:
        Both matrices of ratings, 0 for none.
    """
    train, test = ratings(users, songs, chosen, shown, seed)
    test[users // 2 :] = 0
    raw.mkdir(parents=True)
    for name, matrix in (("train", train), ("test", test)):
        with open(raw / f"ydata-ymusic-rating-study-v1_0-{name}.txt", "w", newline="") as file:
            for user, song in np.argwhere(matrix):
                file.write(f"{user + 1}\t{song + 1}\t{matrix[user, song]}\n")
    return train, test


_KUAI_USER = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,"
    "follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,"
    "friend_user_num_range,register_days,register_days_range,onehot_feat0,onehot_feat1,"
    "onehot_feat2,onehot_feat3,onehot_feat4,onehot_feat5,onehot_feat6,onehot_feat7,onehot_feat8,"
    "onehot_feat9,onehot_feat10,onehot_feat11,onehot_feat12,onehot_feat13,onehot_feat14,"
    "onehot_feat15,onehot_feat16,onehot_feat17"
)


def _kuai_users(path, users, rng):
    lines = [_KUAI_USER]
    for user in range(users):
        cells = [
            *(user, rng.choice(["full_active", "high_active", "UNKNOWN"]), rng.randint(0, 1), 0, 1),
            *(rng.randint(0, 500), '"(0,10]"', rng.randint(0, 9), '"[1,10)"', 0, "0"),
            *(
                rng.randint(15, 4000),
                "730+",
                *(rng.randint(0, 4) for _ in range(17)),
                user % 2 or "",
            ),
        ]
        lines.append(",".join(map(str, cells)))
    path.write_text("\n".join(lines) + "\n")


def write_kuairec(raw, users=12, videos=15, seed=0):
    """KuaiRec: plays of a big matrix, some pairs twice, and a small one with all pairs but one.

    The small matrix is of the first third of the users and the videos; two of its pairs are in the
    big one as well.

    Returns:
        Watch ratios of both matrices, NaN for what wasn't played; and the tags of each video.
    """
    rng = random.Random(seed)
    raw.mkdir(parents=True)
    _kuai_users(raw / "user_features.csv", users, rng)
    tags = [sorted(rng.sample(range(31), rng.randint(1, 3))) for _ in range(videos)]
    lines = ["video_id,feat", *(f'{video},"{own}"' for video, own in enumerate(tags))]
    (raw / "item_categories.csv").write_text("\n".join(lines) + "\n")
    small = np.full((users, videos), np.nan)
    small[: users // 3, : videos // 3] = 0
    small[0, 1] = np.nan  # the user has blocked its author
    played = np.argwhere(~np.isnan(small))
    big = np.full((users, videos), np.nan)
    for pair in np.argwhere(np.isnan(small)):
        if rng.random() < 0.4:
            big[tuple(pair)] = 0
    for pair in played[:2]:
        big[tuple(pair)] = 0
    header = "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio"
    for name, matrix in (("big", big), ("small", small)):
        rows = []
        for place, (user, video) in enumerate(np.argwhere(~np.isnan(matrix))):
            plays = 2 if name == "big" and place % 5 == 0 else 1
            ratios = [rng.choice([0.25, 1.5, 2.0, 2.5, 3.25]) for _ in range(plays)]
            matrix[user, video] = ratios[0]
            for again, ratio in enumerate(ratios):
                second = f"{1593878903.438 + 60 * place + 1e5 * again:.3f}"
                when = ("2020-07-05 00:08:23.438", 20200705, second)
                if name == "small" and place == 0:  # of some the time isn't known
                    when = ("", "", "")
                row = (user, video, int(ratio * 8000), 8000, *when, ratio)
                rows.append(",".join(map(str, row)))
        rng.shuffle(rows)  # not in the order of time
        (raw / f"{name}_matrix.csv").write_text("\n".join([header, *rows]) + "\n")
    return big, small, tags


KUAIRAND_LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,"
    "is_hate,long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,"
    "is_profile_enter,is_rand,tab"
)


def write_kuairand(raw, rows=(300, 80, 120), users=10, videos=20, seed=0):
    """KuaiRand-Pure: the three logs, features of users and of videos.

    Returns:
        The rows of each log as dictionaries of text, and the tags of each video.
    """
    rng = random.Random(seed)
    raw.mkdir(parents=True)
    _kuai_users(raw / "user_features_pure.csv", users, rng)
    tags = [[rng.randint(1, 67) for _ in range(rng.randint(0, 2))] for _ in range(videos)]
    lines = [
        "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,"
        "server_width,server_height,music_id,music_type,tag"
    ]
    for video, own in enumerate(tags):
        tag = ",".join(map(str, own))
        lines.append(
            f"{video},{video // 3},{rng.choice(['NORMAL', 'AD'])},2022-04-0{rng.randint(1, 9)},"
            f"ShortImport,0.0,17200.0,720.0,1280.0,9155697141,9.0,"
            + (f'"{tag}"' if "," in tag else tag)
        )
    (raw / "video_features_basic_pure.csv").write_text("\n".join(lines) + "\n")
    logs = []
    for name, count in zip(
        ("standard_4_08_to_4_21", "standard_4_22_to_5_08", "random_4_22_to_5_08"), rows, strict=True
    ):
        is_rand = int(name.startswith("random"))
        own = []
        for _ in range(count):
            click = int(rng.random() < (0.15 if is_rand else 0.4))
            long_view = int(rng.random() < (0.5 if click else 0.02))
            cells = [
                *(rng.randrange(users), rng.randrange(videos), 20220421, rng.randint(0, 23) * 100),
                *(1650485801301, click, 0, 0, 0, 0, 0, long_view, rng.randint(0, 90000), 104400),
                *(0, 0, 0, is_rand, rng.choice([0, 1, 4])),
            ]
            own.append(dict(zip(KUAIRAND_LOG.split(","), map(str, cells), strict=True)))
        lines = [KUAIRAND_LOG, *(",".join(row.values()) for row in own)]
        (raw / f"log_{name}_pure.csv").write_text("\n".join(lines) + "\n")
        logs.append(own)
    return *logs, tags


def _write_gz(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        file.write("\n".join(lines) + "\n")


def write_criteo_uplift(raw, rows=400, seed=0, file="criteo-uplift-v2.1.csv.gz"):
    """Criteo's uplift data, gzipped; returns the rows as dictionaries of text."""
    header = "f0,f1,f2,f3,f4,f5,f6,f7,f8,f9,f10,f11,treatment,conversion,visit,exposure"
    rng = random.Random(seed)
    found = []
    for _ in range(rows):
        visit = int(rng.random() < 0.3)
        bought = int(visit and rng.random() < 0.3)
        treated = int(rng.random() < 0.85)
        cells = [*(f"{rng.gauss(10, 3):.6f}" for _ in range(12)), treated, bought, visit]
        cells.append(int(treated and visit))
        found.append(dict(zip(header.split(","), map(str, cells), strict=True)))
    _write_gz(raw / file, [header, *(",".join(row.values()) for row in found)])
    return found


def write_criteo_attribution(raw, rows=400, seed=0):
    """Criteo's attribution data, gzipped, by time; returns the rows as dictionaries of text."""
    header = (
        "timestamp\tuid\tcampaign\tconversion\tconversion_timestamp\tconversion_id\tattribution\t"
        "click\tclick_pos\tclick_nb\tcost\tcpo\ttime_since_last_click\tcat1\tcat2\tcat3\tcat4\t"
        "cat5\tcat6\tcat7\tcat8\tcat9"
    )
    rng = random.Random(seed)
    found = []
    for row in range(rows):
        click = int(rng.random() < 0.4)
        bought = int(rng.random() < (0.3 if click else 0.02))
        cells = [
            *(row * 60, rng.randint(1, 60), rng.choice([22589171, 884761, 18975823]), bought),
            *((row * 60 + 900, rng.randint(1, 10**7)) if bought else (-1, -1)),
            *(int(bought and rng.random() < 0.5), click, *((0, 1) if click else (-1, -1))),
            *(f"{rng.random() / 1e4:.16f}", f"{rng.random():.16f}"),
            *(rng.choice([-1, rng.randint(0, 10**6)]), *(rng.randint(1, 9) for _ in range(9))),
        ]
        found.append(dict(zip(header.split("\t"), map(str, cells), strict=True)))
    lines = [header, *("\t".join(row.values()) for row in found)]
    _write_gz(raw / "criteo_attribution_dataset.tsv.gz", lines)
    return found


def write_aliexpress(raw, rows=(300, 100), seed=0):
    """AliExpress search of a country; returns the rows of both files as dictionaries of text."""
    header = [
        "search_id",
        *(f"categorical_{number}" for number in range(1, 17)),
        *(f"numerical_{number}" for number in range(1, 64)),
        *("click", "conversion"),
    ]
    rng = random.Random(seed)
    raw.mkdir(parents=True)
    found = []
    for name, count in zip(("train", "test"), rows, strict=True):
        own = []
        for row in range(count):
            click = int(rng.random() < 0.3)
            cells = [
                *(1000 * len(found) + row // 8, *(rng.randint(0, 9) for _ in range(16))),
                *(round(rng.random() * 3, 6) for _ in range(63)),
                *(click, int(click and rng.random() < 0.3)),
            ]
            own.append(dict(zip(header, map(str, cells), strict=True)))
        lines = [",".join(header), *(",".join(row.values()) for row in own)]
        (raw / f"{name}.csv").write_text("\n".join(lines) + "\n")
        found.append(own)
    return found
