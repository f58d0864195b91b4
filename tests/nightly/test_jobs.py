import pytest

from dipo.errors import UserError
from dipo.nightly.jobs import read_jobs

MOBILENET = ["+model=mobilenet"]


def refused(path, given=None) -> str:
    with pytest.raises(UserError) as caught:
        read_jobs(path, given or {})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def one(jobs_file, *options, **more):
    return jobs_file(jobs=[{"name": "a", "options": [*MOBILENET, *options], **more}])


def test_jobs_keep_their_order_and_take_the_defaults_before_their_own_options(jobs_file):
    path = jobs_file(
        defaults=["cluster=inline", "precision=w8a8"],
        jobs=[
            {"name": "b", "options": [*MOBILENET, "precision=w4a4"]},
            {"name": "a", "options": [*MOBILENET, "+algo=qdrop"]},
        ],
    )
    jobs = read_jobs(path, {}).jobs
    assert [job.name for job in jobs] == ["b", "a"]
    assert jobs[0].options == ("cluster=inline", "precision=w8a8", "+model=mobilenet", "precision=w4a4")
    assert [(job.config.precision.weight_bits, job.config.algo.name) for job in jobs] == [(4, "none"), (8, "qdrop")]
    assert {(job.model, job.config.cluster.kind) for job in jobs} == {("mobilenet", "inline")}
    assert jobs[0].precision == "w4a4"


def test_a_matrix_is_every_model_with_every_algorithm_on_every_platform(jobs_file):
    path = jobs_file(
        jobs=[{"name": "alone", "options": MOBILENET}],
        matrix={
            "models": {"net": [*MOBILENET, "data.num=8"], "other": ["model.path=x.onnx", "data.path=x.npz"]},
            "algos": ["qdrop", "brecq"],
            "platforms": ["ort", "trt"],
        },
    )
    jobs = {job.name: job for job in read_jobs(path, {}).jobs}
    assert list(jobs)[:4] == ["alone", "net-qdrop-ort", "net-qdrop-trt", "net-brecq-ort"]
    assert len(jobs) == 9
    config = jobs["other-brecq-trt"].config
    assert (config.model.path, config.algo.name, config.platform.name) == ("x.onnx", "brecq", "trt")
    assert jobs["other-brecq-trt"].model == "x"


def test_an_axis_of_a_matrix_may_name_its_options(jobs_file):
    matrix = {"models": {"net": MOBILENET}, "algos": {"low": ["algo=qdrop", "precision=w4a4"], "plain": []}}
    jobs = {job.name: job.config for job in read_jobs(jobs_file(matrix=matrix), {}).jobs}
    assert list(jobs) == ["net-low", "net-plain"]
    assert (jobs["net-low"].algo.name, jobs["net-low"].precision.act_bits) == ("qdrop", 4)
    assert jobs["net-plain"].algo.name == "none"


def test_a_jobs_gate_wins_over_the_files_and_the_command_line_over_both(jobs_file):
    path = jobs_file(
        gate={"max_top1_drop": 1, "min_cosine": 0.9},
        jobs=[{"name": "a", "options": MOBILENET, "gate": {"max_top1_drop": 3, "min_cosine": None}}],
    )
    gate = read_jobs(path, {}).jobs[0].gate
    assert (gate.max_top1_drop, gate.min_cosine) == (3.0, None)
    gate = read_jobs(path, {"gate": {"max_top1_drop": 5.0}}).jobs[0].gate
    assert (gate.max_top1_drop, gate.min_cosine) == (5.0, None)


def test_parallel_and_cluster_come_from_the_file_or_from_the_command_line(jobs_file):
    path = jobs_file(parallel=2, cluster={"cpus": 3}, jobs=[{"name": "a", "options": MOBILENET}])
    listed = read_jobs(path, {})
    assert (listed.parallel, listed.cluster.cpus, listed.cluster.address) == (2, 3, None)
    listed = read_jobs(path, {"parallel": None, "cluster": {"address": "auto"}})
    assert (listed.parallel, listed.cluster.cpus, listed.cluster.address) == (None, 3, "auto")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"job": []}, ("unknown key 'job'", "did you mean jobs")),
        ({"jobs": [{"name": "a", "option": []}]}, ("job 'a'", "unknown key 'option'", "options")),
        ({"matrix": {"models": {"a": MOBILENET}, "algo": []}}, ("unknown key 'algo'", "algos")),
        ({"matrix": {"algos": ["none"]}}, ("matrix: no models",)),
        ({"jobs": [{"options": MOBILENET}]}, ("job 1", "name")),
        ({"jobs": {"a": MOBILENET}}, ("jobs: no list",)),
        ({"jobs": []}, ("no jobs",)),
        ({"jobs": [{"name": "a", "options": "x=1"}]}, ("job 'a': options", "list")),
        ({"defaults": [1], "jobs": [{"name": "a"}]}, ("defaults", "list")),
        ({"gate": {"max_drop": 1}, "jobs": [{"name": "a"}]}, ("unknown option 'gate.max_drop'", "max_top1_drop")),
        ({"gate": {"min_cosine": 2}, "jobs": [{"name": "a"}]}, ("gate.min_cosine 2", "-1 to 1")),
        ({"parallel": 0, "jobs": [{"name": "a"}]}, ("parallel 0", ">= 1")),
        ({"cluster": {"adress": "x"}, "jobs": [{"name": "a"}]}, ("cluster.adress", "address")),
    ],
)
def test_what_the_file_gets_wrong_is_told_with_the_choices(jobs_file, content, words):
    sentence = refused(jobs_file(**content))
    assert all(word in sentence for word in (*words, "jobs.yaml")), sentence


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("algo=qdorp", ("unknown algo 'qdorp'", "did you mean qdrop")),
        ("precision.weight_bits=99", ("precision.weight_bits", "2 to 16")),
        ("nonsense=1", ("unknown option 'nonsense'",)),
        ("run.dir=x", ("run.dir", "leave them out")),
        ("cluster.address=auto", ("cluster.address", "top of the file")),
        ("dry_run=true", ("dry_run",)),
        ("--help", ("--help",)),
    ],
)
def test_options_are_checked_by_job_before_anything_starts(jobs_file, option, words):
    sentence = refused(one(jobs_file, option))
    assert sentence.startswith("job 'a': ")
    assert all(word in sentence for word in words), sentence


def test_a_job_without_a_model_or_data_is_refused(jobs_file):
    assert "job 'a': no model" in refused(jobs_file(jobs=[{"name": "a", "options": ["algo=qdrop"]}]))
    assert "job 'a': no samples" in refused(jobs_file(jobs=[{"name": "a", "options": ["model.path=x.onnx"]}]))


def test_a_gate_of_a_job_is_checked(jobs_file):
    assert "job 'a': unknown option 'gate.cosine'" in refused(one(jobs_file, gate={"cosine": 1}))


@pytest.mark.parametrize("name", ["a/b", "..", "", "a b", ".hidden", "summary.html", "x.log", "a" * 101])
def test_names_that_are_no_folders_are_refused(jobs_file, name):
    assert "folder's name" in refused(jobs_file(jobs=[{"name": name, "options": MOBILENET}]))


def test_two_jobs_of_one_name_are_refused(jobs_file):
    path = jobs_file(jobs=[{"name": "m-none", "options": MOBILENET}],
                     matrix={"models": {"m": MOBILENET}, "algos": ["none"]})  # fmt: skip
    assert "two jobs are named 'm-none'" in refused(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("jobs: [\n", ("not valid YAML", "line 2")),
        ("- a\n", ("no mapping",)),
        ("", ("no mapping",)),
        ("jobs: []\njobs: []\n", ("'jobs' is there twice", "line 2")),
        ("jobs: !!python/object/apply:os.getpid []\n", ("not valid YAML",)),
    ],
)
def test_what_is_no_jobs_file_is_refused(tmp_path, text, words):
    (tmp_path / "jobs.yaml").write_text(text)
    sentence = refused(tmp_path / "jobs.yaml")
    assert all(word in sentence for word in words), sentence


def test_a_file_that_is_missing_or_binary_is_refused(tmp_path):
    assert "No such file" in refused(tmp_path / "none.yaml")
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert "x.yaml" in refused(tmp_path / "x.yaml")
