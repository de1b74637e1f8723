"""Words to fill sentences with: real ones, and made-up ones that can only be copied, never remembered."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random


def listed(text: str) -> tuple[str, ...]:
    """The words of a text; `New_York` is one of two."""
    return tuple(word.replace("_", " ") for word in text.split())


PLACES = listed("""
    Paris London Berlin Rome Madrid Vienna Oslo Dublin Prague Tokyo Kyoto Delhi Cairo Lima Boston Chicago
    Denver Seattle Toronto Hamburg Munich Leipzig Bremen Athens Lisbon Warsaw Zurich Geneva Milan Naples
    Sydney Moscow Beijing Seoul Dallas Miami Austin Houston Helsinki Stockholm Copenhagen Amsterdam
    Brussels Budapest Istanbul Mumbai Singapore Nairobi Lagos Havana Bogota New_York San_Francisco
    Los_Angeles Hong_Kong Cape_Town Buenos_Aires France Germany Spain Italy Japan China India Brazil
    Canada Mexico Norway Sweden Poland Egypt Kenya Chile Cuba Rio_de_Janeiro Köln Zürich
""")

PEOPLE = listed("""
    Ada Alan Grace Linus Alice Bob Carol Dave Eve Frank Anna Ben Clara David Emma Felix Hannah Ian Julia
    Karl Laura Max Nina Oscar Paul Rosa Sam Tina Uwe Vera Walter Zoe Maria John Mary Peter Tom Lisa Sara
    Jonas Mia Leo Noah Olivia
""")

NOUNS = listed("""
    weather price time temperature distance height population status stock score address balance recipe
    schedule opening color size weight age capital author owner number date level speed rate value name
    location route traffic news forecast humidity wind menu rating review title length power load state
    version license report invoice order ticket flight train hotel room table song movie book album game
    team player email phone message note task event meeting reminder alarm timer light lamp door window
    car bike boat plane camera printer file folder page document image video user account group role key
    password token server host port model worker disk memory process job queue backup log test branch
    issue commit package map country river mountain lake island city street bridge school museum library
    shop market garden farm animal plant tree flower bird fish dog cat horse cow bread cheese milk butter
    egg apple pear banana orange lemon cherry tomato potato carrot onion rice pasta pizza soup salad cake
    coffee tea juice water wine beer sugar salt pepper oil paper pencil chair sofa bed clock watch shirt
    shoe hat coat bag box bottle cup plate knife fork spoon laptop screen keyboard mouse cable battery
""")

PLURALS = listed("""
    apples pears bananas oranges lemons cherries tomatoes potatoes carrots onions eggs books songs movies
    cars bikes shoes shirts hats chairs tables clocks cables batteries bottles cups plates flowers trees
    birds cats dogs horses laptops tickets
""")

LANGUAGES = listed("""
    English German French Spanish Italian Dutch Polish Greek Latin Turkish Japanese Chinese Korean Arabic
    Hindi
""")

COMMON = listed("""
    the a an of in on at to for with and or not very new old red green blue good small great big quick
    brown lazy over under here there where when how why who which this that these those my your his her
    our their some any all no one two three four five go come see look find make take give get put read
    write run walk talk speak think know like love want need use try work play eat drink sleep live open
    close start stop begin end help show tell ask say hear feel keep hold turn move bring carry send
""")

_ONSETS = listed("""
    b c d f g h j k l m n p r s t v w z bl br ch cl cr dr fl fr gl gr kl kr pl pr qu sc sh sk sl sm sn sp
    st str th tr tw y x ph wh
""")
_VOWELS = listed("a e i o u a e i o u ai ea ee ie oo ou au y oa ei")
_CODAS = listed(
    "b d f g k l m n p r s t x z ck ct ft lk ll lm lp lt mp nd ng nk nt pt rb rd rk rm rn rt sh ss st th"
)
_ENDINGS = listed("""
    ation tion ing ly ness ance ence ity er ers ed al ic ous able ful less ment ism ist s es land ton
    ville burg ish ions ive ure age ary ory ial ent ant
""")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def made_up(rng: Random) -> str:
    """A lower-case word that nobody has seen: mostly syllables, sometimes plain random letters."""
    if rng.random() < 0.15:
        return "".join(rng.choices(_LETTERS, k=rng.randint(2, 8)))
    syllables = rng.choices((1, 2, 3), weights=(4, 6, 2))[0]
    stem = "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + (rng.choice(_CODAS) if rng.random() < 0.6 else "")
        for _ in range(syllables)
    )
    return stem + rng.choice(_ENDINGS) if rng.random() < 0.25 else stem


def word(rng: Random, real: Sequence[str] = NOUNS, invented: float = 0.5) -> str:
    """A word of the list `real`, or with probability `invented` one made up."""
    return made_up(rng) if rng.random() < invented else rng.choice(real)


def proper_name(rng: Random, real: Sequence[str] = PLACES, invented: float = 0.5) -> str:
    """A capitalised name, now and then of two words."""
    if rng.random() >= invented:
        return rng.choice(real)
    name = made_up(rng).capitalize()
    return f"{name} {made_up(rng).capitalize()}" if rng.random() < 0.15 else name


def code(rng: Random) -> str:
    """An identifier of letters and digits: `AB12`, `x-90`, `4711`."""
    letters = "".join(rng.choices(_LETTERS.upper() if rng.random() < 0.6 else _LETTERS, k=rng.randint(1, 3)))
    digits = str(rng.randint(0, 99999))
    return rng.choice((digits, letters + digits, f"{letters}-{digits}"))
