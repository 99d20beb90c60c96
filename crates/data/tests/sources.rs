//! Each form of data gives the samples that were put in.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::json;
use unif2ace_data::{Broken, DataError, DataSet, Format, MaxBroken, Sample, SampleFault, Vqa, load_all, square_rgb};

fn all(set: &DataSet) -> Vec<Result<Sample, (String, SampleFault)>> {
    (0..set.len()).map(|index| set.get(index).unwrap()).collect()
}

fn good(set: &DataSet) -> Vec<Sample> {
    all(set).into_iter().map(Result::unwrap).collect()
}

fn open(path: &Path, split: &str) -> DataSet {
    DataSet::open(path, None, split, 0).unwrap()
}

/// `(question, answer)` of each.
fn pairs(vqa: &[Vqa]) -> Vec<(&str, &str)> {
    vqa.iter().map(|vqa| (vqa.question.as_str(), vqa.answer.as_str())).collect()
}

fn write_json(path: &Path, value: &serde_json::Value) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, serde_json::to_vec(value).unwrap()).unwrap();
}

#[test]
fn shards_are_read_in_any_order_as_in_a_row() {
    let samples = common::samples();
    let set = open(&common::faces(), "test");
    assert_eq!(set.len(), samples.len());
    for index in (0..samples.len()).rev() {
        assert_eq!(set.get(index).unwrap().unwrap(), samples[index]);
    }
    assert_eq!(good(&DataSet::open(common::faces(), None, "test", 4).unwrap()), samples[..4]);
    let error = DataSet::open(common::faces(), None, "train", 0).err().unwrap().to_string();
    assert!(error.contains("*.tar of the split train"), "{error}");
}

#[test]
fn damaged_shards_are_refused_before_the_first_sample() {
    let bytes = fs::read(common::faces().join("test/test-00000.tar")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.tar");
    for cut in [100, 5000, bytes.len() / 2 + 77] {
        fs::write(&path, &bytes[..cut]).unwrap();
        let error = DataSet::open(&path, None, "train", 0).err().unwrap();
        assert!(matches!(error, DataError::Shard { .. }), "{cut}: {error}");
    }
}

#[test]
fn parquet_of_the_datasets_library() {
    let faces = common::samples();
    let folder = common::faces().join("../datasets");
    // Written by the library itself: tests/fixtures/datasets/make.py.
    let set = DataSet::open(folder.join("list_of_structs.parquet"), None, "train", 0).unwrap();
    let held_out = open(&folder.join("list_of_structs.parquet"), "val");
    assert_eq!((set.len(), held_out.len()), (2, 1), "a file without splits is cut");
    for (sample, face) in good(&set).into_iter().chain(good(&held_out)).zip(&faces) {
        assert_eq!((&sample.key, &sample.image_bytes), (&face.key, &face.image_bytes));
        assert_eq!((&sample.record.captions, &sample.record.vqa), (&face.record.captions, &face.record.vqa));
    }
    let set = open(&folder.join("struct_of_lists.parquet"), "train");
    for (sample, face) in good(&set).iter().zip(&faces) {
        assert_eq!((&sample.key, &sample.image_bytes), (&format!("{}.webp", face.key), &face.image_bytes));
        assert_eq!(sample.record.captions, face.record.captions[..1]);
        assert_eq!(pairs(&sample.record.vqa), pairs(&face.record.vqa));
    }
}

/// A file in the layout of `datasets`, in row groups of two rows.
fn write_parquet(path: &Path, samples: &[Sample]) {
    let schema = "message schema {
        optional group image { optional binary bytes; optional binary path (UTF8); }
        optional group captions (LIST) { repeated group list { optional binary element (UTF8); } }
        optional group question (LIST) { repeated group list { optional binary element (UTF8); } }
        optional group answer (LIST) { repeated group list { optional binary element (UTF8); } }
    }";
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let file = fs::File::create(path).unwrap();
    let mut writer =
        SerializedFileWriter::new(file, Arc::new(parse_message_type(schema).unwrap()), Arc::new(properties)).unwrap();
    for group in samples.chunks(2) {
        let mut columns = writer.next_row_group().unwrap();
        let mut write = |rows: Vec<Vec<Vec<u8>>>, list: bool| {
            let (mut values, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
            for row in rows {
                if row.is_empty() {
                    definition.push(1);
                    repetition.push(0);
                }
                for (place, value) in row.into_iter().enumerate() {
                    values.push(ByteArray::from(value));
                    definition.push(if list { 3 } else { 2 });
                    repetition.push(i16::from(place > 0));
                }
            }
            let mut column = columns.next_column().unwrap().unwrap();
            let repetition = list.then_some(&repetition[..]);
            column.typed::<ByteArrayType>().write_batch(&values, Some(&definition), repetition).unwrap();
            column.close().unwrap();
        };
        let texts = |of: fn(&Sample) -> Vec<String>| -> Vec<Vec<Vec<u8>>> {
            group.iter().map(|sample| of(sample).into_iter().map(String::into_bytes).collect()).collect()
        };
        write(group.iter().map(|sample| vec![sample.image_bytes.clone()]).collect(), false);
        write(texts(|sample| vec![sample.key.clone()]), false);
        write(texts(|sample| sample.record.captions.clone()), true);
        write(texts(|sample| sample.record.vqa.iter().map(|vqa| vqa.question.clone()).collect()), true);
        write(texts(|sample| sample.record.vqa.iter().map(|vqa| vqa.answer.clone()).collect()), true);
        columns.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn parquet_of_many_files_and_row_groups() {
    let folder = tempfile::tempdir().unwrap();
    let mut faces = common::samples();
    faces[3].record.captions.clear();
    faces[4].record.vqa.clear();
    let place = |name: &str| folder.path().join("data").join(name);
    write_parquet(&place("train-00000-of-00002.parquet"), &faces[..5]);
    write_parquet(&place("train-00001-of-00002.parquet"), &faces[5..9]);
    write_parquet(&place("validation-00000-of-00001.parquet"), &faces[9..]);
    let check = |set: &DataSet, faces: &[Sample]| {
        assert_eq!(set.len(), faces.len());
        for index in (0..faces.len()).rev() {
            let sample = set.get(index).unwrap().unwrap();
            let face = &faces[index];
            assert_eq!((&sample.key, &sample.image_bytes), (&face.key, &face.image_bytes));
            assert_eq!(sample.record.captions, face.record.captions);
            assert_eq!(pairs(&sample.record.vqa), pairs(&face.record.vqa));
        }
    };
    check(&open(folder.path(), "train"), &faces[..9]);
    check(&open(folder.path(), "val"), &faces[9..]);
    fs::remove_file(place("train-00000-of-00002.parquet")).unwrap();
    let error = DataSet::open(folder.path(), None, "train", 0).err().unwrap().to_string();
    assert!(error.contains("missing: train-00000-of-00002.parquet"), "{error}");
    let bytes = fs::read(place("train-00001-of-00002.parquet")).unwrap();
    let cut = folder.path().join("cut.parquet");
    fs::write(&cut, &bytes[..bytes.len() - 9]).unwrap();
    assert!(matches!(DataSet::open(&cut, None, "train", 0).err().unwrap(), DataError::Shard { .. }));
}

#[test]
fn llava_lists_with_their_images() {
    let folder = tempfile::tempdir().unwrap();
    let faces = common::samples();
    fs::create_dir_all(folder.path().join("images/part")).unwrap();
    for face in &faces {
        fs::write(folder.path().join(format!("images/part/{}.webp", face.key)), &face.image_bytes).unwrap();
    }
    let talk = |face: &Sample| {
        let mut turns = vec![
            json!({"from": "human", "value": "Describe the image concisely.\n<image>"}),
            json!({"from": "gpt", "value": face.record.captions[0]}),
        ];
        for vqa in &face.record.vqa {
            turns.push(json!({"from": "human", "value": vqa.question}));
            turns.push(json!({"from": "gpt", "value": vqa.answer}));
        }
        json!({"id": face.key, "image": format!("part/{}.webp", face.key), "conversations": turns})
    };
    let mut list: Vec<_> = faces.iter().map(talk).collect();
    list.push(json!({"id": "words", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}));
    list.push(json!({"id": "gone", "image": "part/gone.webp", "conversations": []}));
    list.push(json!({"id": "out", "image": "../../../etc/passwd", "conversations": []}));
    write_json(&folder.path().join("train.json"), &list.into());
    let items = all(&open(folder.path(), "train"));
    assert_eq!(items.len(), faces.len() + 2, "the item without a picture is left out");
    for (item, face) in items.iter().zip(&faces) {
        let sample = item.as_ref().unwrap();
        assert_eq!((&sample.key, &sample.image_bytes), (&face.key, &face.image_bytes));
        assert_eq!(sample.record.captions, face.record.captions[..1]);
        assert_eq!(pairs(&sample.record.vqa), pairs(&face.record.vqa));
    }
    for item in &items[faces.len()..] {
        assert!(matches!(item, Err((_, SampleFault::NoPicture { .. }))), "{item:?}");
    }
    fs::write(folder.path().join("train.json"), "[{\"id\": 1,").unwrap();
    assert!(matches!(DataSet::open(folder.path(), None, "train", 0).err().unwrap(), DataError::SetFile { .. }));
}

#[test]
fn captions_and_questions_beside_an_image_folder() {
    let faces = common::samples();
    // A picture is named with its folder, its extension or neither; what the files say of it is gathered.
    for (number, name) in ["images/ffhq/{}.webp", "{}.webp", "{}"].into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("images/ffhq")).unwrap();
        let (mut captions, mut questions) = (Vec::new(), Vec::new());
        for face in &faces {
            fs::write(root.join(format!("images/ffhq/{}.webp", face.key)), &face.image_bytes).unwrap();
            let image = name.replace("{}", &face.key);
            captions.push(json!({"image": image, "caption": face.record.captions}));
            let said = |vqa: &Vqa| json!({"image": image, "question": vqa.question, "answer": vqa.answer, "type": vqa.kind});
            questions.extend(face.record.vqa.iter().map(said));
        }
        if number == 0 {
            write_json(&root.join("captions.json"), &captions.into());
            write_json(&root.join("VQA/vqa.json"), &questions.into());
        } else {
            let lines: Vec<String> = questions.iter().map(ToString::to_string).collect();
            fs::write(root.join("all_vqa.jsonl"), lines.join("\n")).unwrap();
            let by_name = captions.into_iter().map(|row| (row["image"].as_str().unwrap().to_owned(), row["caption"].clone()));
            write_json(&root.join("captions.json"), &serde_json::Value::Object(by_name.collect()));
        }
        assert_eq!(Format::detect(root).unwrap(), Format::Unif2aced);
        let (train, val) = (open(root, "train"), open(root, "val"));
        assert_eq!((train.len(), val.len()), (faces.len() - 1, 1));
        let samples: Vec<Sample> = good(&train).into_iter().chain(good(&val)).collect();
        for sample in &samples {
            let face = faces.iter().find(|face| face.key == sample.key).unwrap();
            assert_eq!(sample.image_bytes, face.image_bytes);
            assert_eq!(sample.record.captions, face.record.captions);
            assert_eq!(pairs(&sample.record.vqa), pairs(&face.record.vqa));
            assert_eq!(sample.record.vqa[0].kind, face.record.vqa[0].kind);
        }
    }
}

/// A set of captions by file, with small pictures of these paths; what is in them is their path.
fn captioned(pictures: &[&str], files: &[(&str, serde_json::Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for picture in pictures {
        let path = folder.path().join(picture);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, picture).unwrap();
    }
    for (name, rows) in files {
        write_json(&folder.path().join(name), rows);
    }
    folder
}

/// Key, picture and captions of each sample.
fn told(set: &DataSet) -> Vec<(String, String, Vec<String>)> {
    let read = |sample: Sample| (sample.key, String::from_utf8(sample.image_bytes).unwrap(), sample.record.captions);
    good(set).into_iter().map(read).collect()
}

#[test]
fn names_of_annotations_tell_their_split() {
    let row = |name: &str| json!([{"image": name, "caption": format!("face {name}")}]);
    let pictures = ["images/a.png", "images/b.png", "images/c.png"];
    let keys = |root: &Path, split: &str| -> Vec<String> { good(&open(root, split)).into_iter().map(|face| face.key).collect() };
    for [train, val, test] in [
        ["train_captions.json", "val_captions.json", "test_captions.json"],
        ["captions_train2014.json", "captions-validation.json", "captions.test.json"],
        ["captions/train.json", "captions/dev.json", "captions/test/all.json"],
        ["train/captions.json", "val/captions.json", "test/captions.json"],
        ["data/train/captions/1.json", "data/val/captions/1.json", "data/test/captions/1.json"],
    ] {
        // What tells no split is left out, as with the other forms.
        let files = [(train, row("a")), (val, row("b")), (test, row("c")), ("other_captions.json", row("a"))];
        let folder = captioned(&pictures, &files);
        let root = folder.path();
        assert_eq!(Format::detect(root).unwrap(), Format::Unif2aced, "{train}");
        let found = ["train", "val", "test"].map(|split| keys(root, split));
        assert_eq!(found, [["a"], ["b"], ["c"]], "{train}");
        assert_eq!(told(&open(root, "train"))[0].2, ["face a"], "{train}");
        fs::remove_file(root.join(val)).unwrap();
        let error = DataSet::open(root, None, "val", 0).err().unwrap().to_string();
        assert!(error.contains("*.json or *.jsonl of the split val"), "{error}");
    }
}

#[test]
fn pictures_of_the_same_name_in_two_folders_are_two() {
    let captions = |names: &[&str]| -> serde_json::Value {
        names.iter().map(|name| json!({"image": name, "caption": format!("by {name}")})).collect()
    };
    let names =
        ["ffhq/00001.png", "celeba/00001.jpg", "images/ffhq/00001", "00002", "./ffhq/00002.png", "00001", "ffhq/00003.png"];
    let pictures = ["images/ffhq/00001.png", "images/celeba/00001.jpg", "images/ffhq/00002.png", "images/celeba/00003.png"];
    let folder = captioned(&pictures, &[("train_captions.json", captions(&names))]);
    let set = open(folder.path(), "train");
    let items = all(&set);
    assert_eq!(items.len(), 5);
    let said = |index: usize| {
        let sample: &Sample = items[index].as_ref().unwrap();
        (sample.key.as_str(), std::str::from_utf8(&sample.image_bytes).unwrap(), &sample.record.captions[..])
    };
    let by = |names: [&str; 2]| names.map(|name| format!("by {name}"));
    let first = by(["ffhq/00001.png", "images/ffhq/00001"]);
    assert_eq!(said(0), ("images/ffhq/00001.png", "images/ffhq/00001.png", &first[..]));
    let second = ["by celeba/00001.jpg".to_owned()];
    assert_eq!(said(1), ("images/celeba/00001.jpg", "images/celeba/00001.jpg", &second[..]));
    // A bare name is that of the one picture that is called so.
    assert_eq!(said(2), ("00002", "images/ffhq/00002.png", &by(["00002", "./ffhq/00002.png"])[..]));
    let (key, fault) = items[3].as_ref().unwrap_err();
    let text = fault.to_string();
    assert_eq!(key, "00001");
    assert!(text.contains("images/celeba/00001.jpg, images/ffhq/00001.png"), "{text}");
    // A picture of another folder isn't taken for it.
    assert!(matches!(items[4], Err((_, SampleFault::NoPicture { .. }))));
}

#[test]
fn broken_records_are_skipped_up_to_the_limit() {
    let folder = captioned(&["images/a.png", "images/b.png"], &[]);
    let lines = "{\"image\": \"a\", \"caption\": \"one\"}\n{\"image\": \n{\"caption\": \"of what?\"}\n[]\n\n{\"image\": \"b\"}\n";
    let (captions, list) = (folder.path().join("train_captions.jsonl"), folder.path().join("llava.json"));
    fs::write(&captions, lines).unwrap();
    fs::write(&list, "[{\"image\": \"a.png\"}, 7, {\"id\": \"words\"}, {\"image\": \"b.png\"}, {\"image\": \"b.png\"}]").unwrap();
    let faults = |set: &DataSet| -> Vec<(String, String)> {
        let broken = all(set).into_iter().filter_map(Result::err);
        broken.map(|(key, fault)| (key, fault.to_string())).collect()
    };
    let set = open(folder.path(), "train");
    let found = faults(&set);
    let keys: Vec<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["train_captions.jsonl:2", "train_captions.jsonl:3", "train_captions.jsonl:4"]);
    for ((_, fault), expected) in found.iter().zip(["EOF", "the name of a picture (`image`)", "an object, found a list"]) {
        assert!(fault.contains(expected), "{fault}");
    }
    let load = |limit| {
        let broken = Broken::new(MaxBroken::Count(limit));
        load_all(&set, 0, &broken, |sample| Ok(sample.key)).map_err(|error| error.to_string())
    };
    assert_eq!(load(3).unwrap(), ["a", "b"]);
    let error = load(2).unwrap_err();
    assert!(error.contains("3 broken samples") && error.contains("train_captions.jsonl:4"), "{error}");
    let llava = DataSet::open(&list, Some(Format::Llava), "train", 0).unwrap();
    assert_eq!((llava.len(), faults(&llava)[0].0.as_str()), (3, "llava.json:2"));

    // A file without a single record is none of records.
    for (path, text) in [(&captions, "one\ntwo\n"), (&list, "[1, 2]"), (&list, "{\"image\"")] {
        fs::write(path, text).unwrap();
        let error = DataSet::open(path, Some(Format::Llava), "train", 0).err().unwrap();
        assert!(matches!(error, DataError::SetFile { .. }), "{text}: {error}");
    }
    assert!(matches!(DataSet::open(&captions, None, "train", 0).err().unwrap(), DataError::SetFile { .. }));
}

#[test]
fn lines_of_text() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("train.txt"), "one\n\n  two \r\nthree").unwrap();
    fs::write(folder.path().join("train.jsonl"), "{\"text\": \"four\"}\n\"five\"\n{\"text\": }\n").unwrap();
    let items = all(&open(folder.path(), "train"));
    let texts: Vec<_> =
        items.iter().map(|item| item.as_ref().map_or_else(|(key, _)| key.clone(), |s| s.record.captions[0].clone())).collect();
    assert_eq!(texts, ["four", "five", "train.jsonl:3", "one", "two", "three"]);
    assert!(items[0].as_ref().unwrap().image_bytes.is_empty());
    let keys: Vec<_> = items.iter().map(|item| item.as_ref().map_or_else(|(key, _)| key, |sample| &sample.key)).collect();
    assert_eq!(keys, ["train.jsonl:1", "train.jsonl:2", "train.jsonl:3", "train.txt:1", "train.txt:3", "train.txt:4"]);
    let bad = folder.path().join("bad.txt");
    fs::write(&bad, b"good\n\xff\xfe\nlast").unwrap();
    assert!(matches!(open(&bad, "train").get(1).unwrap(), Err((_, SampleFault::Record { .. }))));
}

#[test]
fn forms_are_told_by_names() {
    for (name, format) in [
        ("train/a.tar", Format::Webdataset),
        ("data/train-0.parquet", Format::Parquet),
        ("llava_v1_5_mix665k.json", Format::Llava),
        ("captions/a.json", Format::Unif2aced),
        ("lines.jsonl", Format::Text),
        ("lines.txt", Format::Text),
    ] {
        let folder = tempfile::tempdir().unwrap();
        write_json(&folder.path().join(name), &json!([]));
        assert_eq!(Format::detect(folder.path()).unwrap(), format, "{name}");
    }
    let folder = tempfile::tempdir().unwrap();
    let error = DataSet::open(folder.path(), None, "train", 0).err().unwrap().to_string();
    assert!(error.contains("*.parquet") && error.contains("hint:"), "{error}");
}

#[test]
fn pictures_become_squares() {
    let bytes = common::samples().remove(0).image_bytes;
    let whole = square_rgb(&bytes, "a", 128).unwrap();
    assert_eq!(whole, unif2ace_image::decode_rgb(&bytes, "a", Default::default()).unwrap().data());
    assert_eq!(square_rgb(&bytes, "a", 96).unwrap().len(), 96 * 96 * 3);
    assert!(matches!(square_rgb(&bytes[..200], "a", 128), Err(SampleFault::Picture { .. })));
}
