"use strict";
// Synchronised players: all tracks of a song run together, one of them is heard. Switching keeps the
// position to the sample. Without Web Audio the browser's own players are shown instead.
(() => {
  const FADE = 0.008; // seconds: a switch without a click
  let shared = null; // one AudioContext, made on the first gesture, as browsers want it

  class Song {
    constructor(article) {
      this.article = article;
      this.tracks = [...article.querySelectorAll(".track")].map((element) => ({
        element,
        name: element.dataset.name,
        tile: element.querySelector(".tile"),
        audio: element.querySelector("audio"),
      }));
      this.current = 0;
      this.offset = 0; // seconds, while it stands
      this.duration = Number(article.dataset.seconds);
      this.playing = false;
      this.loading = null;
      const find = (name) => article.querySelector(name);
      this.parts = { play: find(".play"), seek: find(".seek"), clock: find(".clock"),
        now: find(".now"), loop: find(".again input") };
      this.listen();
      this.show();
    }

    listen() {
      const { play, seek, loop } = this.parts;
      play.addEventListener("click", () => this.toggle());
      seek.addEventListener("input", () => this.seek(Number(seek.value)));
      loop.addEventListener("change", () => this.keep());
      this.tracks.forEach((track, i) => track.tile.addEventListener("click", () => {
        if (this.playing && i === this.current) this.pause();
        else { this.select(i); if (!this.playing) this.play(); }
      }));
      this.article.addEventListener("keydown", (event) => this.key(event));
    }

    get position() {
      if (!this.playing) return this.offset;
      const since = Math.max(0, shared.currentTime - this.began);
      return this.parts.loop.checked ? since % this.duration : Math.min(since, this.duration);
    }

    async load() {
      shared ??= new AudioContext();
      this.loading ??= Promise.all(this.tracks.map(async (track) => {
        const packed = atob(track.audio.src.split(",")[1]);
        const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
        track.buffer = await shared.decodeAudioData(bytes.buffer);
        track.gain = new GainNode(shared, { gain: 0 });
        track.gain.connect(shared.destination);
      })).then(() => { this.duration = Math.min(...this.tracks.map((t) => t.buffer.duration)); });
      await this.loading;
    }

    async play() {
      if (this.playing) return;
      this.playing = true; // a second press while loading stops it again
      songs.forEach((other) => { if (other !== this) other.pause(); });
      try {
        await Promise.all([this.load(), shared.resume()]);
      } catch (error) {
        this.playing = false;
        this.article.classList.add("native");
        return;
      }
      if (!this.playing) return;
      if (this.offset >= this.duration - 0.01) this.offset = 0;
      this.start();
      this.show();
      this.frame();
    }

    start() {
      const at = shared.currentTime + 0.02;
      this.began = at - this.offset;
      const loop = this.parts.loop.checked;
      this.tracks.forEach((track, i) => {
        track.source = new AudioBufferSourceNode(shared,
          { buffer: track.buffer, loop, loopStart: 0, loopEnd: this.duration });
        track.source.connect(track.gain);
        track.gain.gain.cancelScheduledValues(0);
        track.gain.gain.value = i === this.current ? 1 : 0;
        track.source.start(at, this.offset);
      });
      this.tracks[0].source.onended = () => { this.halt(); this.offset = 0; this.show(); };
    }

    halt() {
      this.playing = false;
      for (const track of this.tracks) {
        if (!track.source) continue;
        track.source.onended = null;
        track.source.stop();
        track.source.disconnect();
        track.source = null;
      }
    }

    pause() {
      if (!this.playing) return;
      this.offset = this.tracks[0].source ? this.position : this.offset;
      this.halt();
      this.show();
    }

    toggle() { return this.playing ? this.pause() : this.play(); }

    seek(to) {
      const running = this.playing && this.tracks[0].source;
      if (running) this.halt();
      this.offset = Math.min(Math.max(0, to), this.duration);
      if (running) { this.playing = true; this.start(); this.frame(); }
      this.show();
    }

    // Looping changed: go on from the same place under the new rule.
    keep() {
      if (!this.playing || !this.tracks[0].source) return;
      const since = Math.max(0, shared.currentTime - this.began);
      this.seek(since % this.duration);
    }

    select(i) {
      this.current = i;
      for (const [k, track] of this.tracks.entries())
        if (track.gain) track.gain.gain.setTargetAtTime(k === i ? 1 : 0, shared.currentTime, FADE / 3);
      this.show();
    }

    key(event) {
      const tile = event.target.closest(".tile");
      if (!tile || event.altKey || event.ctrlKey || event.metaKey) return;
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Home") this.seek(0);
      else if (step && event.shiftKey) this.seek(this.position + 0.5 * step);
      else if (step || ["ArrowUp", "ArrowDown"].includes(event.key)) this.move(tile, event.key, step);
      else return;
      event.preventDefault();
    }

    move(tile, name, step) {
      const rows = [...this.article.querySelectorAll(".row")]
        .map((row) => [...row.querySelectorAll(".tile")])
        .filter((tiles) => tiles.length && tiles[0].offsetParent);
      const row = rows.findIndex((tiles) => tiles.includes(tile));
      const column = rows[row].indexOf(tile);
      const beside = rows[row + (name === "ArrowDown" ? 1 : -1)] ?? [];
      const next = step ? rows[row][column + step] : beside[column] ?? beside.at(-1);
      if (!next) return;
      this.select(this.tracks.findIndex((track) => track.tile === next));
      next.focus();
    }

    frame() {
      if (!this.playing) return;
      this.place();
      requestAnimationFrame(() => this.frame());
    }

    place() {
      const at = this.position;
      this.article.style.setProperty("--at", at / this.duration);
      this.parts.seek.value = at;
      this.parts.clock.textContent = `${at.toFixed(1)} / ${this.duration.toFixed(1)} s`;
    }

    show() {
      this.article.classList.toggle("playing", this.playing);
      this.article.classList.toggle("begun", this.playing || this.offset > 0);
      this.parts.play.setAttribute("aria-label", this.playing ? "Pause" : "Play");
      this.parts.now.textContent = this.tracks[this.current].name;
      this.tracks.forEach((track, i) => {
        track.tile.setAttribute("aria-pressed", i === this.current);
        track.tile.tabIndex = i === this.current ? 0 : -1;
      });
      this.parts.seek.max = this.duration;
      this.place();
    }
  }

  if (typeof AudioContext !== "function") return;
  document.documentElement.classList.add("js");
  const songs = [...document.querySelectorAll(".song")].map((article) => new Song(article));
  window.songs = songs;
})();
