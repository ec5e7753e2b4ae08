/* Attention over a pipe, in C: questions are read and answers written as docs/pipe.md has them.
 *
 *     cc -O2 -o attention attention.c -lm
 *     python -m conformance run --subject pipe:./attention --profile attention
 */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char HELLO[] =
    "{\"pipe\":1,\"name\":\"c\",\"mask_polarity\":\"attend\",\"capabilities\":[\"attention\",\"weights\","
    "\"bias\",\"scale\",\"softcap\",\"sinks\",\"grouped\"]}";
static const char LETTERS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

typedef struct {
  long shape[4];
  void *data; /* NULL: the question has no such array */
} Array;

/* Return an array of a question, its base64 decoded. Axes that it lacks are in front, of size 1. */
static Array array(const char *line, const char *name) {
  Array found = {{1, 1, 1, 1}, NULL};
  char start[64], *at;
  snprintf(start, sizeof start, "\"%s\":{\"dtype\":", name);
  if (!(at = strstr(line, start))) return found;
  at = strstr(at, "\"shape\":[") + strlen("\"shape\":[");
  for (int axis = 0; *at != ']'; axis++) {
    if (axis) memmove(found.shape, found.shape + 1, 3 * sizeof(long));
    found.shape[3] = strtol(at, &at, 10);
    at += *at == ',';
  }
  at = strstr(at, "\"data\":\"") + strlen("\"data\":\"");
  unsigned char *byte = found.data = malloc(strcspn(at, "\"") + 1);
  unsigned bits = 0, held = 0;
  for (; *at != '"' && *at != '='; at++) {
    bits = bits << 6 | (unsigned)(strchr(LETTERS, *at) - LETTERS);
    if ((held += 6) >= 8) *byte++ = (unsigned char)(bits >> (held -= 8));
  }
  return found;
}

/* Return an option that is a number, or what it is when the question lacks it. */
static double number(const char *line, const char *name, double otherwise) {
  char start[64], *at;
  snprintf(start, sizeof start, "\"%s\":", name);
  return (at = strstr(line, start)) ? strtod(at + strlen(start), NULL) : otherwise;
}

/* Print an array shaped as the query is, but for its last axis. */
static void print_array(const char *name, const float *data, const long query[4], long last) {
  printf(",\"%s\":{\"dtype\":\"float32\",\"shape\":[%ld,%ld,%ld,%ld],\"data\":\"", name, query[0],
         query[1], query[2], last);
  size_t size = sizeof(float) * query[0] * query[1] * query[2] * last;
  const unsigned char *byte = (const unsigned char *)data;
  for (size_t i = 0; i < size; i += 3) {
    unsigned bits = 0;
    for (size_t j = i; j < i + 3; j++) bits = bits << 8 | (j < size ? byte[j] : 0);
    for (size_t j = 0; j < 4; j++, bits <<= 6)
      putchar(i + j <= size ? LETTERS[bits >> 18 & 63] : '=');
  }
  printf("\"}");
}

/* Return where the cell (b, h, t, s) stands in an array of four axes, each of which may be 1. */
static long cell(Array a, long b, long h, long t, long s) {
  long *n = a.shape;
  return (((n[0] > 1 ? b : 0) * n[1] + (n[1] > 1 ? h : 0)) * n[2] + (n[2] > 1 ? t : 0)) * n[3] +
         (n[3] > 1 ? s : 0);
}

/* Attend: output (B, H, T, D_v) and weights (B, H, T, S) are full of zeros when they come. */
static void attend(Array q, Array k, Array v, Array mask, Array bias, Array sinks, double scale,
                   double cap, float *output, float *weights) {
  long H = q.shape[1], T = q.shape[2], D = q.shape[3], S = k.shape[2], D_v = v.shape[3];
  double *sum = malloc((D_v + 1) * sizeof(double));
  float *score = malloc((S + 1) * sizeof(float)); /* a bias of -1e9 leaves nothing of the rest */
  char *hidden = malloc(S + 1);
  for (long row = 0; row < q.shape[0] * H * T; row++) {
    long b = row / (H * T), h = row / T % H, t = row % T, kv = h / (H / k.shape[1]);
    double sink = sinks.data ? ((float *)sinks.data)[h] : -INFINITY, top = sink;
    for (long s = 0; s < S; s++) {
      double x = 0, added = bias.data ? ((float *)bias.data)[cell(bias, b, h, t, s)] : 0;
      hidden[s] = added == -INFINITY || (mask.data && !((char *)mask.data)[cell(mask, b, h, t, s)]);
      if (hidden[s]) continue; /* the key is never read */
      for (long d = 0; d < D; d++)
        x += (double)((float *)q.data)[row * D + d] * ((float *)k.data)[cell(k, b, kv, s, d)];
      score[s] = (float)((cap ? cap * tanh(x * scale / cap) : x * scale) + added);
      if (score[s] > top) top = score[s];
    }
    double total = sink == -INFINITY ? 0 : exp(sink - top);
    memset(sum, 0, D_v * sizeof(double));
    for (long s = 0; s < S; s++) {
      if (hidden[s]) continue; /* and neither is the value */
      double weight = exp(score[s] - top);
      total += weight, weights[row * S + s] = (float)weight;
      for (long d = 0; d < D_v; d++) sum[d] += weight * ((float *)v.data)[cell(v, b, kv, s, d)];
    }
    if (total == 0 || S == 0) continue; /* a fully masked row stays 0 */
    for (long s = 0; s < S; s++) weights[row * S + s] /= (float)total;
    for (long d = 0; d < D_v; d++) output[row * D_v + d] = (float)(sum[d] / total);
  }
  free(score), free(sum), free(hidden);
}

static void answer(const char *line) {
  Array q = array(line, "query"), k = array(line, "key"), v = array(line, "value");
  Array mask = array(line, "mask"), bias = array(line, "bias"), sinks = array(line, "sinks");
  long rows = q.shape[0] * q.shape[1] * q.shape[2], H_kv = k.shape[1];
  float *output = calloc(rows * v.shape[3] + 1, sizeof(float));
  float *weights = calloc(rows * k.shape[2] + 1, sizeof(float));
  printf("{\"id\":%.0f", number(line, "id", 0));
  if (H_kv ? q.shape[1] % H_kv : q.shape[1]) {
    printf(",\"error\":\"query heads must be a multiple of key heads: got %ld and %ld\"",
           q.shape[1], H_kv);
  } else {
    double scale = number(line, "scale", 1 / sqrt((double)q.shape[3]));
    attend(q, k, v, mask, bias, sinks, scale, number(line, "softcap", 0), output, weights);
    print_array("output", output, q.shape, v.shape[3]);
    if (strstr(line, "\"call\":\"weights\"")) print_array("weights", weights, q.shape, k.shape[2]);
  }
  puts("}");
  void *used[] = {q.data, k.data, v.data, mask.data, bias.data, sinks.data, output, weights};
  for (size_t i = 0; i < sizeof used / sizeof *used; i++) free(used[i]);
}

int main(void) {
  char *line = NULL;
  size_t size = 0;
  puts(HELLO);
  fflush(stdout);
  while (getline(&line, &size, stdin) > 0) answer(line), fflush(stdout);
  free(line);
}
