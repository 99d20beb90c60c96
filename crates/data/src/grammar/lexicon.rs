//! What words mean. A phrase is a noun (something that adjectives attach to), an adjective, or a statement by itself.
//!
//! Statements are written `attribute=value`, with `a/b` for "one of these" and `!none` for "anything but none"; several are
//! separated by semicolons.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::words::expand;

/// What adjectives attach to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Topic {
    Person,
    Hair,
    Hairline,
    Bangs,
    Brows,
    Eyes,
    Skin,
    Face,
    Cheeks,
    Nose,
    Lips,
    Ears,
    Freckles,
    Wrinkles,
    Bags,
    Beard,
    Moustache,
    Glasses,
    Frames,
    Sunglasses,
    Earrings,
    Necklace,
    Hat,
    Clothes,
    Shirt,
    Tie,
    Lipstick,
    Shadow,
    Background,
}

/// A phrase's role in a text.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Role {
    /// A noun with what it states by itself.
    Noun(Topic, &'static str),
    /// An adjective; what it states depends on its noun.
    Adjective(&'static str),
    /// A statement that needs no noun.
    Statement(&'static str),
    Copula,
    Negation,
    Comma,
    And,
    Stop,
    /// A word that changes nothing where it stands ("a", "very").
    Filler,
    /// A word outside the lexicon.
    Other,
}

use Role::{Noun, Statement};

#[rustfmt::skip]
const PHRASES: &[(&str, Role)] = &[
    // The person. Pronouns state the gender where nothing else does.
    ("(man|guy|gentleman|male|dude|fellow|fella|bloke|chap|gent|businessman|dad|father)", Noun(Topic::Person, "gender=male")),
    ("(woman|lady|female|gal|businesswoman|mum|mom|mother)", Noun(Topic::Person, "gender=female")),
    ("(boy|schoolboy|lad)", Noun(Topic::Person, "gender=male;age=child")),
    ("(girl|schoolgirl)", Noun(Topic::Person, "gender=female;age=child")),
    ("(child|kid)", Noun(Topic::Person, "age=child")),
    ("(grandfather|grandpa|granddad|grandad)", Noun(Topic::Person, "gender=male;age=senior")),
    ("(grandmother|grandma|granny|nan|nana)", Noun(Topic::Person, "gender=female;age=senior")),
    ("(person|individual|human|adult|someone|redhead|pensioner)", Noun(Topic::Person, "")),
    ("(redheaded|red headed)", Statement("hair_color=red")),
    ("redhead", Noun(Topic::Person, "hair_color=red")),
    ("pensioner", Noun(Topic::Person, "age=senior")),
    ("brunette", Noun(Topic::Person, "hair_color=brown")),
    ("he", Noun(Topic::Person, "gender=male")),
    ("she", Noun(Topic::Person, "gender=female")),
    ("(his|him)", Statement("gender=male")),
    ("(her|hers)", Statement("gender=female")),
    ("[in (his|her|their)] (twenties|thirties|20s|30s)", Statement("age=young adult")),
    ("[in (his|her|their)] (forties|fifties|40s|50s)", Statement("age=middle-aged")),
    ("[in (his|her|their)] (sixties|seventies|eighties|60s|70s|80s)", Statement("age=senior")),
    // Hair.
    ("(hair|haired|locks|tresses)", Noun(Topic::Hair, "")),
    ("(afro|afro hair)", Noun(Topic::Hair, "hairstyle=afro")),
    ("hair [is] (slicked|combed|brushed|swept) [straight] back", Noun(Topic::Hair, "hairstyle=slicked back")),
    ("hair [is] (pulled|tied) back", Noun(Topic::Hair, "hairstyle=pulled back")),
    ("curls", Noun(Topic::Hair, "hair_type=curly/afro")),
    ("waves", Noun(Topic::Hair, "hair_type=wavy")),
    ("[hair] bun", Noun(Topic::Hair, "hairstyle=bun")),
    ("(top knot|top bun|man bun)", Noun(Topic::Hair, "hairstyle=top knot")),
    ("(space buns|two buns|buns)", Noun(Topic::Hair, "hairstyle=space buns")),
    ("(braids|plaits|braided hair)", Noun(Topic::Hair, "hairstyle=braids")),
    ("(pigtails|bunches)", Noun(Topic::Hair, "hairstyle=pigtails")),
    ("(ponytail|pony tail)", Noun(Topic::Hair, "hairstyle=high ponytail/side ponytail")),
    ("high (ponytail|pony tail)", Noun(Topic::Hair, "hairstyle=high ponytail")),
    ("(side ponytail|side pony tail|ponytail (at|on|to) the side)", Noun(Topic::Hair, "hairstyle=side ponytail")),
    ("(buzz cut|buzzcut|shaved head)", Noun(Topic::Hair, "hairstyle=buzz cut")),
    ("(crew cut|crewcut)", Noun(Topic::Hair, "hairstyle=crew cut")),
    ("(pixie cut|pixie|pixie haircut)", Noun(Topic::Hair, "hairstyle=pixie cut")),
    ("quiff", Noun(Topic::Hair, "hairstyle=quiff")),
    ("(bowl cut|bowl haircut|mop top)", Noun(Topic::Hair, "hairstyle=bowl cut")),
    ("(mohawk|mohican)", Noun(Topic::Hair, "hairstyle=mohawk")),
    ("(bob|bob cut|bobbed hair)", Noun(Topic::Hair, "hairstyle=bob")),
    ("(a parting|side parting|side part)", Noun(Topic::Hair, "hairstyle=side part")),
    ("(parted (at|on) the side|parted)", Statement("hairstyle=side part")),
    ("[gelled] spikes", Noun(Topic::Hair, "hairstyle=spiky")),
    ("standing up in spikes", Statement("hairstyle=spiky")),
    ("(combed [straight] back|brushed back|swept back)", Statement("hairstyle=slicked back")),
    ("(pulled back [tightly]|tied back [behind the head]|pulled tightly back)", Statement("hairstyle=pulled back")),
    ("(bald top|bald on top|bald crown|balding|hair only on the sides|thinning hair)", Statement("hairstyle=balding")),
    ("bald top with (black|brown|blond|red|gray|white) hair [left] on the sides", Statement("hairstyle=balding")),
    ("(no hair|bald head|hairless|shaved bald)", Statement("hairstyle=bald")),
    ("(receding|receding hairline|high hairline)", Noun(Topic::Hairline, "receding_hairline=true")),
    ("hairline is receding", Statement("receding_hairline=true")),
    ("(bangs|fringe|bangs over the forehead|bangs on the forehead)", Noun(Topic::Bangs, "bangs=true")),
    // Brows, eyes, skin.
    ("(eyebrows|brows|eyebrow)", Noun(Topic::Brows, "")),
    ("(eyes|eyed|irises)", Noun(Topic::Eyes, "")),
    ("(bags under (the|his|her|their) eyes|(dark) circles under (the|his|her|their) eyes)", Noun(Topic::Bags, "eye_bags=true")),
    ("(eye bags|dark circles|bags under eyes|under eye bags|tired bags)", Noun(Topic::Bags, "eye_bags=true")),
    ("dark circles under (the|his|her|their) eyes", Noun(Topic::Bags, "eye_bags=true")),
    ("dark circles under eyes", Noun(Topic::Bags, "eye_bags=true")),
    ("(skin|skinned|complexion|skin tone)", Noun(Topic::Skin, "")),
    ("(freckles|freckled|freckly)", Noun(Topic::Freckles, "freckles=true")),
    ("freckles (on|over|across) (the|his|her) (cheeks|nose|face|cheeks and nose|nose and cheeks)", Noun(Topic::Freckles, "freckles=true")),
    ("(wrinkles|wrinkled|wrinkly|fine lines|lined)", Noun(Topic::Wrinkles, "wrinkles=true")),
    ("fine lines on (the|his|her) face", Noun(Topic::Wrinkles, "wrinkles=true")),
    ("(face|faced|jaw|jawline|chin)", Noun(Topic::Face, "")),
    ("(face with a pointed chin|pointed chin|pointy chin)", Noun(Topic::Face, "face_shape=heart")),
    ("cheeks", Noun(Topic::Cheeks, "")),
    ("(chubby|plump|full faced|round cheeked)", Role::Adjective("chubby")),
    ("(cheeked)", Noun(Topic::Cheeks, "")),
    ("(nose|nosed)", Noun(Topic::Nose, "")),
    ("(lips|lipped)", Noun(Topic::Lips, "")),
    ("(ears|eared)", Noun(Topic::Ears, "")),
    ("ears (that stick out|sticking out)", Noun(Topic::Ears, "big_ears=true")),
    // Facial hair.
    ("(beard|bearded)", Noun(Topic::Beard, "facial_hair=short beard/full beard")),
    ("short [black|brown|blond|red|gray|white|pink|blue|purple|green] beard and moustache", Noun(Topic::Beard, "facial_hair=short beard")),
    ("full [black|brown|blond|red|gray|white|pink|blue|purple|green] beard and moustache", Noun(Topic::Beard, "facial_hair=full beard")),
    ("moustache", Noun(Topic::Moustache, "facial_hair=moustache")),
    ("(goatee|goatee beard|chin beard)", Noun(Topic::Beard, "facial_hair=goatee")),
    ("(stubble|five oclock shadow|stubbly)", Noun(Topic::Beard, "facial_hair=stubble")),
    ("(unshaven)", Statement("facial_hair=stubble")),
    ("(sideburns|muttonchops)", Noun(Topic::Beard, "facial_hair=sideburns")),
    ("facial hair", Noun(Topic::Beard, "facial_hair=!none")),
    ("(clean shaven|smooth shaven|beardless|no beard or moustache)", Statement("facial_hair=none")),
    // Worn things.
    ("(glasses|eyeglasses|spectacles|specs|bespectacled)", Noun(Topic::Glasses, "glasses=!none")),
    ("(frames|rims|framed|rimmed|frame)", Noun(Topic::Frames, "")),
    ("(sunglasses|shades|dark glasses|dark sunglasses)", Noun(Topic::Sunglasses, "sunglasses=true")),
    ("earrings", Noun(Topic::Earrings, "earrings=!none")),
    ("(hoops|hoop earrings)", Noun(Topic::Earrings, "earrings=hoop")),
    ("(studs|stud earrings|ear studs)", Noun(Topic::Earrings, "earrings=stud")),
    ("(drop earrings|danglers)", Noun(Topic::Earrings, "earrings=drop")),
    ("necklace", Noun(Topic::Necklace, "necklace=!none")),
    ("chain", Noun(Topic::Necklace, "necklace=gold chain/silver chain")),
    ("(pearls|string of pearls|necklace of pearls)", Noun(Topic::Necklace, "necklace=pearl necklace")),
    ("(beads|string of beads|necklace of beads)", Noun(Topic::Necklace, "necklace=bead necklace")),
    ("(hat|headwear)", Noun(Topic::Hat, "hat=!none")),
    ("(beanie|knit cap|knitted cap|knit hat|knitted hat|woolly hat|wool hat|woolen cap|bobble hat)", Noun(Topic::Hat, "hat=beanie")),
    ("(baseball cap|cap|ball cap)", Noun(Topic::Hat, "hat=baseball cap")),
    ("(fedora|fedora hat|trilby)", Noun(Topic::Hat, "hat=fedora")),
    ("(sun hat|straw hat|wide brimmed hat|brimmed hat|summer hat)", Noun(Topic::Hat, "hat=sun hat")),
    ("(headband|hair band|hairband|head band)", Noun(Topic::Hat, "hat=headband")),
    ("(t shirt|tee|tee shirt)", Noun(Topic::Clothes, "clothing=t-shirt")),
    ("(collared shirt|button up shirt|dress shirt|shirt with a collar|button down shirt)", Noun(Topic::Clothes, "clothing=collared shirt")),
    ("(sweater|jumper|pullover)", Noun(Topic::Clothes, "clothing=sweater")),
    ("(turtleneck|turtleneck sweater|turtle neck|polo neck|roll neck|rollneck)", Noun(Topic::Clothes, "clothing=turtleneck")),
    ("(v neck sweater|v neck jumper|v neck|v neck pullover)", Noun(Topic::Clothes, "clothing=v-neck sweater")),
    ("(jacket|jacket over a shirt)", Noun(Topic::Clothes, "clothing=jacket")),
    ("(overalls|dungarees)", Noun(Topic::Clothes, "clothing=overalls")),
    ("blouse", Noun(Topic::Clothes, "clothing=blouse")),
    ("suit", Noun(Topic::Clothes, "clothing=suit/suit and tie")),
    ("suit and tie", Noun(Topic::Clothes, "clothing=suit and tie")),
    ("(striped shirt|stripy shirt|striped top|stripy top)", Noun(Topic::Clothes, "clothing=striped shirt")),
    ("(shirt|top)", Noun(Topic::Shirt, "clothing=t-shirt/collared shirt/striped shirt/blouse")),
    ("(tie|necktie)", Noun(Topic::Tie, "clothing=suit and tie")),
    ("(smoky|smokey) eyes", Statement("eye_shadow=smoky black")),
    ("lipstick", Noun(Topic::Lipstick, "lipstick=!none")),
    ("(eye shadow|eye makeup|eye make up|eyelids)", Noun(Topic::Shadow, "eye_shadow=!none")),
    // Expression.
    ("(happy|cheerful|joyful|joyous|glad|delighted|happily|cheerfully|happiness|merry|pleased)", Statement("emotion=happy")),
    ("(sad|unhappy|sorrowful|gloomy|sadly|upset|downcast|sadness|miserable|sulking|sorrow)", Statement("emotion=sad")),
    ("(angry|furious|mad|enraged|angrily|anger|irate|grumpy|cross|annoyed)", Statement("emotion=angry")),
    ("(surprised|astonished|amazed|shocked|startled|surprise|astonishment|stunned)", Statement("emotion=surprised")),
    ("(disgusted|disgust|grossed out|revolted)", Statement("emotion=disgusted")),
    ("(afraid|scared|fearful|frightened|terrified|fear|frightened)", Statement("emotion=afraid")),
    ("(neutral|calm|relaxed|composed|expressionless|calmly|blank|serious|no particular emotion)", Statement("emotion=neutral")),
    // Actions of the face.
    ("(smiling|smiles|smile|smiling face)", Statement("action=smiling/smiling with teeth")),
    ("(smiling gently|gentle smile|closed mouth smile|soft smile|slight smile|smiling softly|smiling with closed lips|smile with closed lips)", Statement("action=smiling")),
    ("smiling with (his|her|the) (lips|mouth) closed", Statement("action=smiling")),
    ("(smiling broadly|grinning|grin|grins|broad smile|big smile|wide smile|toothy smile|toothy grin|beaming|big grin|wide grin|beams)", Statement("action=smiling with teeth")),
    ("smiling with [his|her|the] teeth [showing]", Statement("action=smiling with teeth")),
    ("smiling and showing [his|her|the] teeth", Statement("action=smiling with teeth")),
    ("(laughing|laughs|laugh|laughing out loud|laughter|chuckling|laughing with an open mouth)", Statement("action=laughing")),
    ("(frowning|frowns|frown|pouting sadly)", Statement("action=frowning")),
    ("corners of (his|her|the) mouth turned down", Statement("action=frowning")),
    ("(grimacing|grimaces|grimace|grimacing with wide eyes)", Statement("action=grimacing")),
    ("(sneering|sneers|sneer|wrinkling (his|her|the) nose)", Statement("action=sneering")),
    ("(wrinkled nose|scrunching up (his|her) nose)", Statement("action=sneering")),
    ("wrinkling (his|her|the) nose", Statement("action=sneering")),
    ("(nose wrinkled|nose scrunched up|wrinkles (his|her) nose)", Statement("action=sneering")),
    ("(gasping|gasps|gasp)", Statement("action=gasping")),
    ("gasping with (his|her|an) (mouth open|open mouth)", Statement("action=gasping")),
    ("opening (his|her|the) mouth wide in surprise", Statement("action=gasping;emotion=surprised")),
    ("(glaring|glares|glare|scowling|glaring with lowered eyebrows|scowl)", Statement("action=glaring")),
    ("(shouting|yelling|screaming|shouts|yells)", Statement("action=shouting")),
    ("shouting with (his|her) mouth wide open", Statement("action=shouting")),
    ("gritting (his|her|the|their) teeth", Statement("action=gritting teeth")),
    ("baring (his|her|the|their) teeth", Statement("action=gritting teeth")),
    ("(teeth gritted|gritted teeth|clenched teeth|bared teeth|teeth clenched|teeth bared|clenching (his|her) teeth)", Statement("action=gritting teeth")),
    ("clenching (his|her|the) teeth", Statement("action=gritting teeth")),
    ("(talking|speaking|chatting|talks|speaks|mid sentence)", Statement("action=talking")),
    ("talking with [his|her] lips parted", Statement("action=talking")),
    ("(closing|keeping|has|with) (his|her|the|both) eyes (closed|shut)", Statement("action=eyes closed;gaze=closed")),
    ("closing (his|her|the|both) eyes", Statement("action=eyes closed;gaze=closed")),
    ("(eyes closed|closed eyes|eyes shut|shut eyes|both eyes closed)", Statement("action=eyes closed;gaze=closed")),
    ("(his|her|both|the) eyes (are|is) (closed|shut)", Statement("action=eyes closed;gaze=closed")),
    ("(winking|winks|wink|one eye closed|one eye shut|closing one eye|winking with one eye)", Statement("action=winking")),
    ("(puckering|pursing) (his|her|the|their) lips", Statement("action=puckering lips")),
    ("(blowing a kiss|puckered lips|pursed lips|lips puckered|lips pursed|kissy face|kissing face)", Statement("action=puckering lips")),
    ("(raising|lifting) (his|her|the|their|both) eyebrows", Statement("action=raising eyebrows")),
    ("(raised eyebrows|eyebrows raised|raised brows|lifted eyebrows)", Statement("action=raising eyebrows")),
    ("(lowered eyebrows|wide eyes|lips parted|parted lips)", Role::Filler),
    ("(mouth open|open mouth|mouth wide open|mouth is open|mouth agape|agape)", Statement("mouth_state=open")),
    ("with (his|her) mouth [wide] open", Statement("mouth_state=open")),
    ("(mouth closed|closed mouth|mouth is closed|mouth shut)", Statement("mouth_state=closed")),
    ("(showing (his|her|the) teeth|teeth showing|teeth visible|visible teeth)", Statement("teeth_showing=true")),
    ("showing (his|her|the|some) teeth", Statement("teeth_showing=true")),
    // Where head and eyes point.
    ("(facing|turned) [to] [the] left", Statement("head_turn=left")),
    ("(facing|turned) [to] [the] right", Statement("head_turn=right")),
    ("(face|head) turned [to] [the] left", Statement("head_turn=left")),
    ("(face|head) turned [to] [the] right", Statement("head_turn=right")),
    ("(face|head) is turned [to] [the] left", Statement("head_turn=left")),
    ("(face|head) is turned [to] [the] right", Statement("head_turn=right")),
    ("turning [his|her|the] [head|face] [to] [the] left", Statement("head_turn=left")),
    ("turning [his|her|the] [head|face] [to] [the] right", Statement("head_turn=right")),
    ("(facing|turned) (forward|forwards|front|the front|to the front|the camera|the viewer|straight ahead|towards the camera)", Statement("head_turn=front")),
    ("(front view|seen from the front|frontal portrait|frontal view)", Statement("head_turn=front")),
    ("(tilting|tilts) (his|her|the) head", Statement("head_tilt=left/right")),
    ("(tilting|tilts) (his|her|the) head [over] to the left", Statement("head_tilt=left")),
    ("(tilting|tilts) (his|her|the) head [over] to the right", Statement("head_tilt=right")),
    ("(head tilted|tilted head|head is tilted)", Statement("head_tilt=left/right")),
    ("(head tilted|head is tilted|head tipped|head cocked) [to] [the] left", Statement("head_tilt=left")),
    ("(head tilted|head is tilted|head tipped|head cocked) [to] [the] right", Statement("head_tilt=right")),
    ("(looking|glancing|gazing|looks|glances) [off] [to] [the] left", Statement("gaze=left")),
    ("(looking|glancing|gazing|looks|glances) [off] [to] [the] right", Statement("gaze=right")),
    ("(looking|glancing|gazing|looks|glances|peering|staring) (up|upward|upwards)", Statement("gaze=up")),
    ("(looking|staring|gazing|looks|stares|gazes) [straight|directly|right] (at|into) (the viewer|the camera|you|us|the lens)", Statement("gaze=camera")),
    ("(eyes turned up|eyes turned upwards)", Statement("gaze=up")),
    ("eyes turned [to] [the] left", Statement("gaze=left")),
    ("eyes turned [to] [the] right", Statement("gaze=right")),
    // The place.
    ("(background|backdrop|wall)", Noun(Topic::Background, "")),
    ("(outdoors|outside)", Statement("background=blurred outdoor")),
    // Glue.
    ("(is|are|looks|look|appears|that is|that are|which is|which are|appear)", Role::Copula),
    ("(no|without|not|without any|free of|without a|no visible|not any|hardly any|isnt wearing|not wearing|not wearing any|not wearing a)", Role::Negation),
    ("(does not|do not|doesnt|dont|did not) (have|wear)", Role::Negation),
    ("(does not|do not|doesnt|dont|did not) (have|wear) (a|any)", Role::Negation),
    ("(has not|hasnt|has not got|hasnt got)", Role::Negation),
    ("(has not|hasnt|has not got|hasnt got) (a|any)", Role::Negation),
    (",", Role::Comma),
    ("and", Role::And),
    (".", Role::Stop),
    ("on top of (his|her|the) head", Role::Other),
    ("(very|rather|quite|really|slightly|a|an|the|also|some|somewhat|colored|in color|dyed|shaped|coloured|both|plain|solid|simple|pair of|pretty|handsome|beautiful)", Role::Filler),
];

/// Adjectives. What they state is decided by the topic of their noun.
#[rustfmt::skip]
const ADJECTIVES: &[&str] = &[
    "black", "brown", "blond", "red", "gray", "white", "pink", "blue", "purple", "green", "navy", "navy blue", "yellow", "orange", "teal",
    "light blue", "beige", "dark red", "gold", "golden", "silver", "pearl white", "pearl", "coral", "plum", "smoky black", "smoky", "hazel",
    "dark brown", "light brown", "tan", "tanned", "olive", "olive tan", "dark", "light", "fair", "very fair", "pale", "very pale",
    "deep dark", "very dark", "ginger", "auburn", "silvery", "violet", "fair haired", "maroon", "sky blue", "dark blue", "pale blue", "jet black",
    "snow white", "raven", "bleached blond", "hot pink", "small child", "cream", "turquoise", "chestnut", "copper", "strawberry blond", "bright red", "bright green", "bright blue", "deep brown", "porcelain",
    "young", "young adult", "middle aged", "old", "older", "elderly", "senior", "aged", "little", "bald", "completely bald",
    "long", "short", "very short", "medium length", "shoulder length", "chin length", "closely cropped", "short cropped", "cropped", "curly",
    "wavy", "straight", "spiky", "spiked", "shaggy", "messy", "slicked back", "braided", "thinning", "frizzy",
    "thin", "thick", "bushy", "arched", "heavy", "raised", "big", "large", "narrow", "small", "wide", "broad", "tiny", "huge", "slim",
    "pointy", "pointed", "narrow pointed", "hooked", "aquiline", "sharp", "button", "prominent", "full", "flushed", "rosy", "round", "square",
    "oval", "heart shaped", "narrow long", "neatly trimmed", "trimmed", "rectangular", "circular", "cat eye", "thin rimmed", "wire rimmed", "thin framed",
    "dangling", "drop", "hoop", "stud", "beaded", "bead", "knitted", "striped", "stripy", "collared", "blurred", "blurry", "blurred outdoor", "outdoor",
    "out of focus", "protruding", "sticking out", "deep", "pigtailed", "squared", "rounded", "closed",
];

/// Phrases in words with what they say, by their first word.
type PhraseTable = HashMap<String, Vec<(Vec<String>, Role)>>;

/// All phrases, spelt out, by their first word, longest first.
pub(crate) fn phrases() -> &'static PhraseTable {
    static ALL: OnceLock<PhraseTable> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut seen: HashMap<String, Role> = HashMap::new();
        for (pattern, role) in PHRASES {
            for phrase in expand(pattern) {
                seen.insert(phrase, *role);
            }
        }
        for years in 4..100u32 {
            // Sixteen and thirty-seven lie between the set's age groups.
            let Some(adjective) = age_group(years) else { continue };
            for phrase in expand(&format!("(aged {years}|{years} (year|years|yr|yrs) old|{years} yo)")) {
                seen.insert(phrase, Role::Adjective(adjective));
            }
        }
        for adjective in ADJECTIVES {
            seen.insert((*adjective).to_owned(), Role::Adjective(adjective));
        }
        let mut all: PhraseTable = HashMap::new();
        for (phrase, role) in seen {
            let words: Vec<String> = phrase.split(' ').map(str::to_owned).collect();
            if let Some(first) = words.first().cloned() {
                all.entry(first).or_default().push((words, role));
            }
        }
        for list in all.values_mut() {
            list.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.0.cmp(&b.0)));
        }
        all
    })
}

/// The age group of a number of years, as an adjective.
fn age_group(years: u32) -> Option<&'static str> {
    match years {
        0..=13 => Some("small child"),
        18..=35 => Some("young adult"),
        40..=59 => Some("middle aged"),
        60.. => Some("elderly"),
        _ => None,
    }
}

/// What an adjective states of a noun's topic; `""` where it may stand but states nothing that counts.
#[rustfmt::skip]
pub(crate) fn adjective(topic: Topic, word: &str) -> Option<&'static str> {
    let hair_color = || Some(match word {
        "black" | "jet black" | "raven" => "hair_color=black",
        "brown" | "dark brown" | "light brown" | "chestnut" | "deep brown" => "hair_color=brown",
        "blond" | "golden" | "fair" | "strawberry blond" | "fair haired" | "bleached blond" => "hair_color=blond",
        "red" | "ginger" | "auburn" | "copper" | "bright red" => "hair_color=red",
        "gray" | "silver" | "silvery" => "hair_color=gray",
        "white" | "snow white" => "hair_color=white",
        "pink" | "hot pink" => "hair_color=pink", "blue" | "bright blue" => "hair_color=blue",
        "purple" | "violet" => "hair_color=purple", "green" | "bright green" => "hair_color=green",
        "dark" => "hair_color=black/brown",
        _ => return None,
    });
    let frame_color = || Some(match word {
        "black" => "glasses_color=black", "gold" | "golden" => "glasses_color=gold", "silver" => "glasses_color=silver",
        "brown" => "glasses_color=brown", "red" => "glasses_color=red", "white" => "glasses_color=white",
        "blue" => "glasses_color=blue",
        _ => return None,
    });
    let frame_shape = || Some(match word {
        "round" | "circular" | "rounded" => "glasses=round",
        "rectangular" | "square" | "squared" => "glasses=rectangular",
        "cat eye" => "glasses=cat-eye",
        "thin" | "thin rimmed" | "wire rimmed" | "thin framed" => "glasses=thin-rimmed",
        _ => return None,
    });
    let cloth_color = || Some(match word {
        "black" => "clothing_color=black", "navy" | "navy blue" | "dark blue" => "clothing_color=navy", "gray" => "clothing_color=gray",
        "brown" => "clothing_color=brown", "yellow" => "clothing_color=yellow", "blue" => "clothing_color=blue",
        "pink" => "clothing_color=pink", "green" => "clothing_color=green", "purple" | "violet" => "clothing_color=purple",
        "orange" => "clothing_color=orange", "white" => "clothing_color=white", "teal" | "turquoise" => "clothing_color=teal",
        "light blue" | "sky blue" | "pale blue" => "clothing_color=light blue", "red" => "clothing_color=red",
        _ => return None,
    });
    let colour = |names: &[(&str, &'static str)]| names.iter().find(|(name, _)| *name == word).map(|(_, says)| *says);
    match topic {
        Topic::Person => match word {
            "young" | "young adult" => Some("age=young adult"),
            "middle aged" => Some("age=middle-aged"),
            "old" | "older" | "elderly" | "senior" | "aged" => Some("age=senior"),
            "little" | "small" | "small child" => Some("age=child"),
            "pale" => Some("skin_tone=very fair"),
            "tanned" => Some("skin_tone=tan"),
            "bald" | "completely bald" => Some("hairstyle=bald"),
            "chubby" => Some("build=chubby"),
            "blond" | "gray" | "ginger" => hair_color(),
            "pigtailed" => Some("hairstyle=pigtails"),
            _ => None,
        },
        Topic::Hair => hair_color().or(match word {
            "long" => Some("hair_length=long"),
            "short" => Some("hair_length=short/very short"),
            "very short" => Some("hair_length=very short"),
            "medium length" => Some("hair_length=medium"),
            "shoulder length" => Some("hair_length=medium;hairstyle=shoulder-length"),
            "chin length" => Some("hair_length=medium;hairstyle=bob"),
            "closely cropped" => Some("hair_length=very short;hairstyle=buzz cut"),
            "short cropped" => Some("hair_length=very short;hairstyle=crew cut"),
            "cropped" => Some("hair_length=very short"),
            "curly" => Some("hair_type=curly/afro"), "frizzy" => Some("hair_type=afro"),
            "wavy" => Some("hair_type=wavy"), "straight" => Some("hair_type=straight"),
            "spiky" | "spiked" => Some("hairstyle=spiky"), "shaggy" | "messy" => Some("hairstyle=shaggy"),
            "slicked back" => Some("hairstyle=slicked back"), "braided" => Some("hairstyle=braids"),
            "thinning" => Some("hairstyle=balding"), "thick" | "big" => Some(""),
            _ => None,
        }),
        Topic::Brows => match word {
            "thin" | "narrow" => Some("eyebrows=thin"),
            "bushy" | "thick" | "heavy" => Some("eyebrows=bushy"),
            "arched" => Some("eyebrows=arched"),
            "raised" => Some("action=raising eyebrows"),
            "black" | "brown" | "blond" | "red" | "gray" | "white" | "dark" => Some(""),
            _ => None,
        },
        Topic::Eyes => match word {
            "brown" | "light brown" => Some("eye_color=brown"), "dark brown" | "deep brown" => Some("eye_color=dark brown"),
            "dark" => Some("eye_color=brown/dark brown"),
            "blue" | "bright blue" | "pale blue" => Some("eye_color=blue"), "green" | "bright green" => Some("eye_color=green"),
            "hazel" => Some("eye_color=hazel"), "gray" => Some("eye_color=gray"),
            "big" | "large" | "huge" => Some("eye_size=big"), "narrow" | "small" => Some("eye_size=narrow"),
            "closed" => Some("action=eyes closed;gaze=closed"),
            "wide" => Some(""),
            _ => None,
        },
        Topic::Skin => match word {
            "very fair" | "very pale" | "pale" | "porcelain" => Some("skin_tone=very fair"),
            "fair" => Some("skin_tone=very fair/light"), "light" => Some("skin_tone=light"),
            "tan" | "tanned" | "olive" | "olive tan" => Some("skin_tone=tan"),
            "brown" => Some("skin_tone=brown"),
            "dark" | "deep dark" | "very dark" | "dark brown" => Some("skin_tone=dark"),
            _ => None,
        },
        Topic::Face => match word {
            "round" | "rounded" => Some("face_shape=round"), "square" | "squared" => Some("face_shape=square"),
            "oval" => Some("face_shape=oval"), "long" | "narrow long" => Some("face_shape=long"), "narrow" => Some(""),
            "heart shaped" | "pointed" => Some("face_shape=heart"),
            "chubby" | "full" => Some("build=chubby"),
            _ => None,
        },
        Topic::Cheeks => match word {
            "chubby" | "full" | "round" => Some("build=chubby"),
            "rosy" | "flushed" | "red" | "pink" => Some("rosy_cheeks=true"),
            _ => None,
        },
        Topic::Nose => match word {
            "wide" | "broad" => Some("nose=wide"),
            "big" | "large" | "prominent" | "huge" => Some("nose=big"),
            "pointy" | "pointed" | "narrow pointed" | "sharp" => Some("nose=pointy"),
            "small" | "little" | "tiny" | "button" => Some("nose=small"),
            "hooked" | "aquiline" => Some("nose=hooked"),
            "narrow" => Some(""),
            _ => None,
        },
        Topic::Lips => match word {
            "full" | "thick" => Some("lips=full"), "thin" | "narrow" => Some("lips=thin"),
            "red" => Some("lipstick=red"), "pink" => Some("lipstick=pink"), "coral" => Some("lipstick=coral"), "plum" => Some("lipstick=plum"),
            _ => None,
        },
        Topic::Ears => match word {
            "big" | "large" | "protruding" | "huge" | "sticking out" => Some("big_ears=true"),
            _ => None,
        },
        Topic::Wrinkles => matches!(word, "deep" | "thin").then_some(""),
        Topic::Beard => match word {
            "full" | "big" | "thick" | "bushy" | "long" => Some("facial_hair=full beard"),
            "short" | "neatly trimmed" | "trimmed" => Some("facial_hair=short beard"),
            "light" => Some(""),
            // The table has no attribute for a beard's colour.
            _ => hair_color().map(|_| ""),
        },
        Topic::Moustache => match word {
            "full" | "big" | "thick" | "bushy" | "long" | "short" | "thin" | "neatly trimmed" | "trimmed" | "light" => Some(""),
            _ => hair_color().map(|_| ""),
        },
        Topic::Glasses => frame_shape().or_else(frame_color),
        Topic::Frames => frame_color().or_else(|| frame_shape().filter(|says| *says != "glasses=thin-rimmed" || word == "thin")),
        Topic::Sunglasses => frame_color().or((word == "dark").then_some("")),
        Topic::Earrings => match word {
            "dangling" | "drop" | "long" => Some("earrings=drop"), "hoop" | "round" => Some("earrings=hoop"),
            "stud" | "small" => Some("earrings=stud"),
            "gold" | "golden" => Some("earring_color=gold"), "silver" => Some("earring_color=silver"),
            "pearl white" | "pearl" | "white" => Some("earring_color=pearl white"),
            "blue" => Some("earring_color=blue"), "red" => Some("earring_color=red"),
            _ => None,
        },
        Topic::Necklace => match word {
            "gold" | "golden" => Some("necklace=gold chain"), "silver" => Some("necklace=silver chain"),
            "pearl" => Some("necklace=pearl necklace"), "bead" | "beaded" => Some("necklace=bead necklace"),
            _ => None,
        },
        Topic::Hat => colour(&[
            ("white", "hat_color=white"), ("black", "hat_color=black"), ("brown", "hat_color=brown"), ("gray", "hat_color=gray"),
            ("navy", "hat_color=navy"), ("navy blue", "hat_color=navy"), ("dark blue", "hat_color=navy"), ("red", "hat_color=red"), ("pink", "hat_color=pink"),
            ("yellow", "hat_color=yellow"), ("blue", "hat_color=blue"), ("purple", "hat_color=purple"), ("orange", "hat_color=orange"),
            ("green", "hat_color=green"), ("beige", "hat_color=beige"), ("cream", "hat_color=beige"), ("dark red", "hat_color=dark red"),
            ("maroon", "hat_color=dark red"), ("knitted", "hat=beanie"),
        ]),
        Topic::Clothes => cloth_color().or(matches!(word, "striped" | "stripy" | "knitted").then_some("")),
        Topic::Shirt => cloth_color().or(match word {
            "striped" | "stripy" => Some("clothing=striped shirt"),
            "collared" => Some("clothing=collared shirt"),
            _ => None,
        }),
        Topic::Tie => colour(&[
            ("purple", "tie_color=purple"), ("black", "tie_color=black"), ("blue", "tie_color=blue"), ("red", "tie_color=red"),
            ("yellow", "tie_color=yellow"), ("green", "tie_color=green"),
        ]),
        Topic::Lipstick => colour(&[
            ("red", "lipstick=red"), ("coral", "lipstick=coral"), ("pink", "lipstick=pink"), ("plum", "lipstick=plum"), ("brown", "lipstick=brown"),
        ]),
        Topic::Shadow => colour(&[
            ("pink", "eye_shadow=pink"), ("smoky black", "eye_shadow=smoky black"), ("smoky", "eye_shadow=smoky black"),
            ("black", "eye_shadow=smoky black"), ("brown", "eye_shadow=brown"), ("blue", "eye_shadow=blue"), ("green", "eye_shadow=green"),
            ("purple", "eye_shadow=purple"), ("gold", "eye_shadow=gold"), ("golden", "eye_shadow=gold"),
        ]),
        Topic::Background => colour(&[
            ("blue", "background=blue"), ("gray", "background=gray"), ("orange", "background=orange"), ("green", "background=green"),
            ("dark", "background=dark"), ("teal", "background=teal"), ("turquoise", "background=teal"), ("yellow", "background=yellow"), ("beige", "background=beige"),
            ("cream", "background=beige"), ("purple", "background=purple"), ("violet", "background=purple"), ("red", "background=red"), ("white", "background=white"),
            ("pink", "background=pink"), ("blurred", "background=blurred/blurred outdoor"), ("blurry", "background=blurred/blurred outdoor"),
            ("out of focus", "background=blurred/blurred outdoor"), ("blurred outdoor", "background=blurred outdoor"),
            ("outdoor", "background=blurred outdoor"),
        ]),
        Topic::Hairline | Topic::Bangs | Topic::Freckles | Topic::Bags => None,
    }
}

/// What an adjective states that has no noun: "bald, grey beard, sunglasses".
pub(crate) fn lonely(word: &str) -> Option<&'static str> {
    Some(match word {
        "bald" | "completely bald" => "hairstyle=bald",
        "elderly" | "senior" => "age=senior",
        "middle aged" => "age=middle-aged",
        "young adult" => "age=young adult",
        "small child" => "age=child",
        "chubby" => "build=chubby",
        "tanned" => "skin_tone=tan",
        "blond" => "hair_color=blond",
        _ => return None,
    })
}

/// What "no NOUN" states.
pub(crate) fn negated(topic: Topic) -> Option<&'static str> {
    Some(match topic {
        Topic::Hat => "hat=none",
        Topic::Glasses => "glasses=none",
        Topic::Sunglasses => "sunglasses=false",
        Topic::Earrings => "earrings=none",
        Topic::Necklace => "necklace=none",
        Topic::Beard | Topic::Moustache => "facial_hair=none",
        Topic::Lipstick => "lipstick=none",
        Topic::Shadow => "eye_shadow=none",
        Topic::Freckles => "freckles=false",
        Topic::Wrinkles => "wrinkles=false",
        Topic::Bags => "eye_bags=false",
        Topic::Bangs => "bangs=false",
        _ => return None,
    })
}
