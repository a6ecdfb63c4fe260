"""The prose of the results page. No measured number stands here: see `page` for what the places in brackets mean."""

TEMPLATE = """\
# Results

What HyperTransport does to concepts that nobody fitted and that it was not trained on, measured against what people
would use instead, and where it loses.

<!-- This page is written by a command, from results.json beside it. Do not edit it: change the command's text instead. -->

```bash
[[command|s]]
```

[[table:missing]]Everything below comes out of that run, but *With another seed* and *Other trainings*, which name theirs: numbers in
[results.json](results.json) and [results.csv](results.csv) (both with intervals), pictures in [results/](results/). Another `--seed` draws other scenes
and other noise; `--from FOLDER` draws page, charts and sheets again from what a run has kept; `python -m
hypertransport_core results --help` has the rest. Shortened run (`--quick`): [[quick|s]].

[[if:counts.taken_over]]
Of [[counts.yardsticks|n]] measurements of other methods, in which the hypernetwork has no part, [[counts.taken_over|n]]
were taken over from earlier runs with the same model, judges, scenes and fits (`--yardsticks FOLDER`); the command as
printed makes all of them anew.

[[end]]
**How it was measured.** [[counts.heldout|n]] held-out concepts of the embedded [Postcard world](postcard.md)
([[counts.concepts|n]] concepts in all), [[counts.prompts|n]] scenes each that no training used, the same scenes and
noise for every method, [[counts.steps|n]] sampling steps, [[counts.images|n]] pictures. In brackets: 95 % bootstrap
intervals over concepts.

- **concept**: share of pictures in which the judge, a network trained on renders only, names the concept as the most
  probable of all.
- **subject**, **colour**: share of pictures whose subject (colour) the judge saw before steering and still sees after
  it. **All three**: concept, subject and colour right in the same picture.
- **place**, **size**: still right by the nearest render of the same scene, among all places and sizes. **error**:
  distance to the render of the same truth in the concept, root mean square with pixels from zero to one; lower is
  better.

## In short

From words the concept is named in [[heldout.ours_text.concept|%~]] of the pictures, [[share_of_prompting|.2~]] ×
prompting; from one reference picture in [[heldout.ours_image.concept|%~]], from four in
[[heldout.ours_images_4.concept|%~]]. By the share of pictures with everything right, each method at the strength
chosen for it on validation concepts, HyperTransport from words

[[table:summary]]

A win or a loss is a difference whose interval excludes zero; all others are ties.
[[if:again.compared]]
Of [[again.compared|n]] such verdicts, one per method and measure, [[again.same|n]] were the same on other scenes with
other noise, and [[again.reversed|n]] turned round: see [With another seed](#with-another-seed).

[[end]]
The goals this project has set itself:

[[table:goals]]

**Read it with these limits.** Postcard is small, and its prompts name every concept in words that its model was
trained on, so *prompting is nearly perfect by construction*: it is the upper bound, not a rival that real models
offer. The held-out concepts are unknown to the hypernetwork, but the generator and the CLIP have seen them, as in the
method's paper. Many concepts are compositions of a colour and a pattern whose parts were trained on. Nothing here
says how well real checkpoints are steered.

## At strength 1

[[table:at_one]]

[[if:counts.fewer]]
The concepts of LinEAS with [[fit.steps_long|n]] steps ([[counts.lineas_1000|n]]; of the nearest training concept's
maps [[counts.nearest|n]]) and of the concept-slider LoRA ([[counts.slider_lora|n]]) are few because one fit takes
minutes: compare those lines with others only through the table of differences below.

[[end]]
*LinEAS*: [[fit.samples|n]] samples, batches of [[fit.batch|n]]. *Concept-slider LoRA*: a low-rank change of every
linear layer ([Gandikota et al.](https://arxiv.org/abs/2311.12092)), fitted to the same prompts in
[[fit.slider_steps|n]] steps; here the prompt with the concept is its target.

## Every method at its best strength

Shift-only maps at every layer add up, so a strength of one is too much for some methods. For each, the strength with
the most pictures right in concept, subject and colour was chosen on validation concepts (*chosen on*: how many); the
nearest concept's maps use the strength of LinEAS. The held-out concepts had no part in it. Where the strength is the
largest of the second chart below, none beyond it was tried; a choice on few concepts is a rough one, and differs with
the seed.

[[table:at_best]]

[[picture:methods.png|Concept named against subject kept for every method at its chosen strength, with intervals]]

[[picture:choice.png|Share of validation pictures right in concept, subject and colour over strength, per method]]

## Where it wins, ties and loses

HyperTransport from words minus the method, on the same concepts, both at the strengths chosen; in percentage points
(error: hundredths, lower is better).

[[table:versus]]

*Ridge regression* predicts Mean-AcT's shifts from the same embeddings by linear regression on the training concepts:
amortised steering without any training by gradients. *Our mean map* is the mean of our maps over the training
concepts, so it does not listen to the concept. *Linear-AcT, incremental* fits a line per channel from statistics of
the concept's own prompts, a layer at a time; it needs those prompts and [[fit.samples|n]] network calls for each
side, but no gradients. Of Linear-AcT only this form is in this
table, the other seed's and the preferences.

[[if:again.compared]]
## With another seed

Measured again on other scenes with other noise, with the same weights. Of [[again.compared|n]] verdicts as in the
table above (methods times measures), [[again.same|n]] are the same and [[again.reversed|n]] turned round (a win to a loss, or back). Those that differ, this
page's first:
[[table:differ]].

[[table:again]]

[[end]]
[[if:heldout.ours_text.clip]]
## By another CLIP

The judge knows concepts as classes. A second CLIP, trained from another seed, with fewer layers and on other postcards
than the one that reads the concepts, knows them by their words: share of pictures whose nearest name, among those of all
[[counts.concepts|n]] concepts, is the right one. It conditions nothing, and nothing was trained or chosen with it; as the
judge, it has learned from renders of the held-out concepts too, and is right on [[clip_2.renders|%]] of fresh ones. For
HyperTransport from words, its shares and the judge's have a rank correlation of [[clip_2.agreement|.2]] over concepts.

[[table:clip]]

[[end]]
## What becomes of the picture

[[table:input]]

*Like the unsteered inside the subject*: one minus the mean absolute difference to the unsteered picture within the
subject's mask. A concept that tints everything changes the subject as well, as it should, so prompting is the
yardstick, not 100 %. Unsteered pictures are [[heldout.unsteered.error|.3]] away from the renders of their own truth.

## Which concepts

[[table:categories]]

[[picture:categories.png|Concept named per category, for HyperTransport, prompting and per-concept fits]]

By distance to the nearest training concept, in quarters:

[[table:distance]]

[[picture:distance.png|Concept named over the distance to the nearest training concept, every concept and means of quarters]]

The farthest quarter is named [[distance.farthest_quarter_drop|%~]] less often than the other three (prompting:
[[distance.farthest_quarter_drop.prompting|%~]]); below zero means more often.

## Over strength

[[table:curve]]

[[picture:strength.png|Concept, subject, colour and distance moved over strength]]

[[picture:strength.jpg|Six concepts from the best to the worst over eight strengths]]

Over strengths from off to full in quarters, the judge's probability of the concept, a mean over
[[counts.rise_prompts|n]] scenes, rises strictly for
[[heldout.ours_text.monotone|%~]] of the concepts, and never falls by more than [[monotone_tolerant.fall_allowed|.2]]
for [[heldout.ours_text.monotone_tolerant|%~]]. *Distance moved* is that from the unsteered picture, as a share of the
way to the fully steered one; it departs from the strength itself by [[curve.ours_text.bend|.2~]]
at its farthest, on average (zero would be a slider that is linear in pictures). Strength 0 is bit-identical to no steering in this run:
[[curve.identical_at_0|s]]. Above the full strength is extrapolation.

## From a picture

One reference picture gives [[modality.image_share|.2~]] of the concept fidelity of words, four give
[[modality.images_4_share|.2~]]. The references are renders with a subject, colour and place of their own.

[[if:versus_image.image_adapter.concept]]
An *image-prompt adapter* ([Ye et al.](https://arxiv.org/abs/2308.06721)) is shown the same single picture: a second
attention beside the text's in every layer, trained on data collected as the hypernetwork's, from pictures only, for
[[steps.adapter|n]] steps (the hypernetwork, from words and pictures: [[steps.hypernetwork|n]], to which come those of
its teachers where it learned from others, as [the shipped one](training.md#two-recipes) did). HyperTransport from the
picture minus the adapter, as in the table of differences above:

[[table:versus_image]]

[[end]]
## Taken away

The prompt names the concept; maps predicted from its words are to take it out again. *Gone*: of the pictures that
showed the concept, those that no longer do, which a spoiled picture does as well. *No concept at all*: the judge then
sees a plain picture. *All three*: a plain picture with the right subject and colour, of those that had them before.
*Error*: distance to the render without the concept. The shipped weights were trained to remove at a strength of minus
one; the inverse of their maps is exact at every module, but not for the modules together.

[[table:removal]]

[[picture:removal.jpg|Nine concepts: in the prompt, taken out in four ways, never asked for]]

## Two at once

[[counts.pairs|n]] pairs of held-out concepts of different categories, chosen by a hash, [[counts.study_scenes|n]]
scenes each. *Both present*: both are among the judge's [[counts.near_top|n]] most probable concepts of all. The judge
was trained on single concepts only, and some pairs cannot both be in one picture, so the figure for naming both in
the prompt shows what can be asked; the control says how often the second one is seen where nobody asked for it.

[[table:composition]]

[[picture:composition.jpg|Ten pairs of concepts: sum, one after another, mean embedding, both in the prompt, the first alone]]

## Other words

[[counts.study_scenes|n]] scenes each, so the usual name is measured on them anew. The tokenizer takes a misspelt word for
the nearest one that it knows: where it finds the right one, swapped letters change nothing at all.

[[table:wordings]]

## Other seeds

One prompt that leaves the place open, [[counts.seeds|n]] seeds: mean distance between two pictures (root mean
square). Steering that collapsed the pictures would lower it; a concept that covers the picture lowers it too, so
compare with prompting.

[[table:diversity]]

## Preferred, picture by picture

Same scene, same noise, both at the strengths chosen; a tie counts half. The judges were made differently: the judge
network (probability of the concept, the subject and the colour together), the renderer (which picture is nearer to the
render of the same truth) and, where it has been trained, a second network of another architecture, from other renders.
None is a person, and prompting is nearly perfect here by construction.

[[table:preference]]

[[picture:preference.png|How often HyperTransport from words is preferred to each method, by each judge, with intervals]]

## Seconds

[[table:speed]]

Medians of the same run, on the machine that ran it; fits read from a cache ([[counts.fits_cached|n]] of
[[counts.fits|n]] here) do not count. Predicting against
[[fit.steps_long|n]] steps of LinEAS: [[speed.ratio|x]] as fast. More in [performance](performance.md), whose ratio is another:
a run of its own, with the fit extrapolated from a few steps.

## Gallery

All held-out concepts, failures included, in the order of their categories.

[[sheets:gallery|Held-out concepts: unsteered, half and full strength from words, from one picture, prompting, and per-concept fits]]

### The best and the worst

By the share of pictures right in concept, subject and colour, then by the judge's probability of the concept.

[[picture:best.jpg|The best held-out concepts]]

[[picture:worst.jpg|The worst held-out concepts: failures shown as failures]]

## Other trainings

Everything above is about one hypernetwork; its intervals are over concepts, not over trainings. Other seeds, numbers of
training concepts, samples, site sets, the Perceiver hypernetwork and ablations are trainings of their own: each is
trained by [`train_hypernet.py`](training.md), measured by `python -m hypertransport_core evaluate --hypernetwork FILE --json
REPORT`, and named here by `results --from FOLDER --also GROUP/NAME=REPORT`. A report may have other scenes than this page, or
fewer, so compare its shares with those above roughly only. Numbers of training concepts count
[variations](postcard.md#what-is-on-a-postcard) too. Compare them within their table: a training of
a few hundred steps says what is learned fast, not where a whole one ends; all have the settings that were chosen for the
MLP with all training concepts. What was made of them stands in [training](training.md).

[[table:also]]

[[sheets:curve|How HyperTransport from words and from a picture grows over the runs of a group]]

## The world itself

[[table:world]]

## Not measured yet

[[unless:heldout.image_adapter.concept]]
- **A decoupled image-prompt adapter** as a baseline: it takes part where the weights folder has one, which `python -m
  hypertransport_core.postcard.train_adapter` trains, see [training](training.md#the-postcard-world-itself).
[[end]]
[[unless:heldout.ours_text.clip]]
- **CLIP of another seed** than the conditioning one as a measure of fidelity: scoring with the one that reads the
  concepts would favour the method. `python -m hypertransport_core.postcard.train_clip --seed 1 --size small` trains
  another, with the places that [training](training.md#the-postcard-world-itself) names; then measure again.
[[end]]
[[unless:again.compared]]
- **Another seed**: run the command with another `--seed` and other folders, then name its `results.json` with `--from
  FOLDER --again FILE`.
[[end]]
- **Real checkpoints**, and people.
"""
